"""A perceptron on all weights of a model as one vector, which knows nothing of symmetry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.base import Encoder, refuse_outside
from weightspace.encoders.graph_level import NUM_DECLARED, Standardised, declared_of
from weightspace.encoders.places import Places
from weightspace.encoders.scales import WeightScales
from weightspace.graph import CHANNELS, EDGE_TYPES, DenseGraphs, dense_graphs, layout
from weightspace.spec import WeightSpec
from weightspace.store import Stack


class Flat(Encoder):
    """A perceptron on flattened weights, padded to the largest sizes; not invariant to anything.

    The first layer has one weight per unit of the perceptron and connection (to, from) of the largest model, shared by
    the roles of rows, of which each has a gain per unit and connection type: z_k = sum_{c,i,j} g_k,type(ij),c W_k,ij
    w_c,ij; presence of connections enters in the same way, and biases have weights and gains of their own. Only the
    blocks that a family declares are computed. What symmetry there is must be learned: train it with `GroupMoves` and
    its `permutations`. Flattened weights are the baseline of Unterthiner et al. (arXiv 2002.11448) and Herrmann et al.
    (Learning useful representations of recurrent neural network weight matrices, ICML 2024).

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        width: int = 32,
        max_hidden: int = 32,
        max_layers: int = 2,
        max_inputs: int = 8,
        max_outputs: int = 16,
        max_factors: int = 8,
        max_pairs: int = 64,
    ) -> None:
        super().__init__(embedding_dim)
        refuse_outside({"width": width})
        self.max_sizes = {"hidden": (max_hidden, "max_hidden"), "layers": (max_layers, "max_layers")}
        self.max_sizes |= {"input": (max_inputs, "max_inputs"), "output": (max_outputs, "max_outputs")}
        self.max_sizes |= {"factor": (max_factors, "max_factors"), "pairs": (max_pairs, "max_pairs")}
        self.places = Places({name: most for name, (most, _) in self.max_sizes.items()})
        units, sources = self.places.units, self.places.sources
        self.scales = WeightScales()
        self.declared = Standardised(1, NUM_DECLARED)
        # At this scale the first layer has outputs of order 1 where half of the places are filled.
        self.connection = nn.Parameter(torch.randn(units * sources, width) / math.sqrt(units * sources))
        self.unit = nn.Parameter(torch.randn(sources, width) / math.sqrt(sources))
        self.gain = nn.Parameter(1 + 0.5 * torch.randn(2, len(EDGE_TYPES), CHANNELS, width))
        self.unit_gain = nn.Parameter(1 + 0.5 * torch.randn(2, len(NODE_KINDS), CHANNELS, width))
        self.first = nn.Linear(self.declared.width, width)
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.SiLU(),
            nn.Linear(width, 2 * embedding_dim),
            nn.SiLU(),
            nn.Linear(2 * embedding_dim, embedding_dim),
        )

    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Root mean square of weights by type and role, moments of sizes over the training models, as buffers."""
        for stack in stacks:
            self.scales.add(stack)
            declared = declared_of(layout(stack.family.effective_spec)).to(stack.rows.device)
            self.declared.add(declared.expand(len(stack), 1, -1))
        self.scales.settle()
        self.declared.settle()

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of stacks."""
        embeddings: Tensor = self.layers(torch.cat([self._first(*stack.effective) for stack in stacks]))
        return embeddings

    def _first(self, spec: WeightSpec, params: dict[str, Tensor]) -> Tensor:
        """Outputs (models, width) of the first layer."""
        graphs = self.scales(dense_graphs(spec, params))
        place = self.places.of(spec).to(graphs.edges.device)
        declared = self.declared(declared_of(graphs.layout)[None, None])
        values: Tensor = self.first(declared) + self._connections(graphs, place) + self._units(graphs, place)
        return values

    def _connections(self, graphs: DenseGraphs, place: Tensor) -> Tensor:
        where = graphs.layout
        weighed = where.edge_roles if where.constant is None else where.edge_roles - where.constant
        total = graphs.edges.new_zeros(1, self.gain.shape[-1])
        for kind, channel in _blocks(where.edge_type, weighed):
            to, source = ((where.edge_type == kind) & (weighed[..., channel] > 0)).nonzero(as_tuple=True)
            weight = self.connection[place[to] * self.places.sources + place[source]]
            values, present = (field[:, to, source, channel] @ weight for field in (graphs.edges, graphs.present))
            total = total + values * self.gain[0, kind, channel] + present * self.gain[1, kind, channel]
        return total

    def _units(self, graphs: DenseGraphs, place: Tensor) -> Tensor:
        where = graphs.layout
        total = graphs.nodes.new_zeros(1, self.gain.shape[-1])
        for kind, channel in _blocks(where.kind, where.node_roles):
            units = ((where.kind == kind) & (where.node_roles[:, channel] > 0)).nonzero()[:, 0]
            weight = self.unit[place[units]]
            values, present = graphs.nodes[:, units, channel] @ weight, weight.sum(0)
            total = total + values * self.unit_gain[0, kind, channel] + present * self.unit_gain[1, kind, channel]
        return total


def _blocks(types: Tensor, roles: Tensor) -> list[tuple[int, int]]:
    """(type, channel) of all that is declared, from types (...) and roles (..., channel)."""
    return [
        (kind, channel)
        for kind in types[types >= 0].unique().tolist()
        for channel in (roles[types == kind] > 0).any(0).nonzero()[:, 0].tolist()
    ]
