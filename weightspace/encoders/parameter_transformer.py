"""A transformer over rows of weights, which knows nothing of symmetry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from weightspace.declaration import NONLINEARITIES
from weightspace.encoders.base import Encoder, refuse_outside
from weightspace.encoders.graph_encoder import fit
from weightspace.encoders.places import Places
from weightspace.encoders.scales import WeightScales
from weightspace.graph import CHANNELS, Layout, dense_graphs
from weightspace.spec import WeightSpec
from weightspace.store import Stack

HEAD_DIM = 16


class ParameterTransformer(Encoder):
    """Attention over one token per unit and gate row: its incoming weights and its bias; not invariant to anything.

    A token is a linear map of the row, padded to the places of the largest model, plus learned vectors for the place of
    its unit, for its role and for the unit's nonlinearity; a compression token in front, whose last state becomes the
    embedding, hears all others (Schuerholt et al., Hyper-representations, NeurIPS 2021, arXiv 2110.15288). What
    symmetry there is must be learned: train it with `GroupMoves` and its `permutations`.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        dim: int = 64,
        num_layers: int = 4,
        max_hidden: int = 32,
        max_layers: int = 2,
        max_ends: int = 16,
        max_factors: int = 8,
        max_pairs: int = 64,
    ) -> None:
        super().__init__(embedding_dim)
        if dim < HEAD_DIM or dim % HEAD_DIM:
            raise ValueError(f"`dim` (={dim}) must be a multiple of {HEAD_DIM}, the width of an attention head.")
        refuse_outside({"num_layers": num_layers})
        self.max_sizes = {"hidden": (max_hidden, "max_hidden"), "layers": (max_layers, "max_layers")}
        self.max_sizes |= dict.fromkeys(("input", "output"), (max_ends, "max_ends"))
        self.max_sizes |= {"factor": (max_factors, "max_factors"), "pairs": (max_pairs, "max_pairs")}
        self.places = Places({name: most for name, (most, _) in self.max_sizes.items()})
        self.scales = WeightScales()
        # One vector per place a weight may come from, then one for the bias; weights, then their presence.
        self.row = nn.Parameter(torch.randn(2, self.places.sources + 1, dim) / 8)
        self.position = nn.Embedding(self.places.units, dim)
        self.role = nn.Embedding(CHANNELS, dim)
        self.nonlinearity = nn.Embedding(len(NONLINEARITIES), dim)
        self.compression = nn.Parameter(torch.randn(dim) / 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, dim // HEAD_DIM, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, embedding_dim))

    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Root mean square of training weights by (connection type, channel) and (node kind, channel), as buffers."""
        fit(self, stacks)

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of stacks."""
        states = []
        for stack in stacks:
            tokens = self._tokens(*stack.effective)
            for layer in self.layers:
                tokens = layer(tokens)
            states.append(tokens[:, 0])
        embeddings: Tensor = self.head(torch.cat(states))
        return embeddings

    def _tokens(self, spec: WeightSpec, params: dict[str, Tensor]) -> Tensor:
        """Tokens (models, 1 + row, dim), the compression token first."""
        graphs = self.scales(dense_graphs(spec, params))
        where: Layout = graphs.layout
        place = self.places.of(spec).to(graphs.edges.device)
        incoming = where.edge_roles if where.constant is None else where.edge_roles - where.constant
        unit, channel = (where.node_roles + incoming.sum(1)).nonzero(as_tuple=True)
        sources, bias = self.row[:, place], self.row[:, -1]
        weights, present = (field.movedim(3, 2)[:, unit, channel] for field in (graphs.edges, graphs.present))
        tokens = weights @ sources[0] + graphs.nodes[:, unit, channel][..., None] * bias[0]
        # What the declaration alone fixes is the same for all models: no models axis.
        tokens = tokens + present @ sources[1] + where.node_roles[unit, channel][:, None].to(bias.dtype) * bias[1]
        fixed = self.position(place[unit]) + self.role(channel) + self.nonlinearity(where.nonlinearity[unit])
        first = self.compression.expand(tokens.shape[0], 1, -1)
        return torch.cat([first, tokens + fixed], dim=1)
