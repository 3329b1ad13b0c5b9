"""Message passing whose features carry signs of units, so that embeddings are invariant to signed permutations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.graph_encoder import DenseEncoder
from weightspace.encoders.parities import Parities, parities_of
from weightspace.encoders.parity_layers import FittedScale, ParityLayer, ParityLinear, kinds_of, loops, pair_kinds_of
from weightspace.encoders.pooling import class_means, one_hot_kinds, read_out
from weightspace.encoders.scales import WeightScales
from weightspace.families import Family
from weightspace.graph import CHANNELS, EDGE_TYPES, DenseGraphs, Layout, dense_graphs
from weightspace.spec import Params, WeightSpec
from weightspace.store import Stack

NODE_PAIRS_TOGETHER = 2**14
"""Pairs of nodes encoded at a time: their edge fields stay in the cache."""
FITTED_ON = 16
"""Models of each family and size on which scales of features are fitted."""


class SignEquivariant(DenseEncoder):
    """Signed-permutation equivariant message passing, invariant to permutations and to declared signs of units.

    A unit with sign s_i and a row of declared charges (a, b) give a weight w_ij that moves as s_i^a s_j^b w_ij; every
    feature of an edge x_ij has such a parity (a, b), every one of a node x_i a parity a, and keeps it: linear maps act
    within a parity, with a bias for even features alone; products of features add parities: outer products of ends,
    matrix products of edge fields by channel, sums over sources of e_ij x_j, products at nodes; other nonlinearities
    are odd on what is not even. Pooled are even features, their squares, squares of all others, and traces. (Signs as
    in Lim et al., Sign and basis invariant networks, ICLR 2023, arXiv 2202.13013; metanetworks with one sign action for
    all edges: ScaleGMN, Kalogeropoulos et al., NeurIPS 2024, arXiv 2406.10685.)

    Weights are divided by their root mean square over the training models, by connection type and role, features by
    theirs on the first of these: spread at initialisation depends neither on the scale of weights nor on depth. Models
    of more than `max_layers` layers, `max_ends` inputs or outputs or 256 product nodes are refused.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    symmetry: ClassVar[frozenset[str]] = frozenset({"permutation", "sign"})
    # Features of product nodes have the most parities.
    max_pairs: ClassVar[int | None] = 256

    def __init__(
        self,
        embedding_dim: int = 64,
        edge_dim: int = 12,
        node_dim: int = 48,
        product_dim: int = 8,
        num_layers: int = 3,
        dropout: float = 0.1,
        max_layers: int = 8,
        max_ends: int = 256,
        summaries: bool = False,
    ) -> None:
        sizes = {"edge_dim": edge_dim, "node_dim": node_dim, "product_dim": product_dim, "num_layers": num_layers}
        super().__init__(embedding_dim, sizes, max_layers, max_ends, summaries)
        # Of all four pairs of an even and an odd parity, which most models have.
        self.numbers_per_pair = 4 * (CHANNELS + 10 * edge_dim + 6 * product_dim)
        self.scales = WeightScales()
        self.edge_in, self.node_in = ParityLinear(4, CHANNELS, edge_dim), ParityLinear(2, CHANNELS, node_dim)
        self.edge_gain = nn.Parameter(1 + 0.3 * torch.randn(len(EDGE_TYPES) + 1, edge_dim))
        self.edge_roles = nn.Linear(2 * CHANNELS, edge_dim, bias=False)
        self.embed_types(edge_dim)
        self.node_roles = nn.Linear(CHANNELS + 1, node_dim, bias=False)
        self.embed_nodes(node_dim, max_layers)
        self.position = nn.Embedding(max_ends + 1, node_dim)
        self.edge_scale, self.node_scale = FittedScale(4, edge_dim), FittedScale(2, node_dim)
        self.layers = nn.ModuleList(ParityLayer(edge_dim, node_dim, product_dim) for _ in range(num_layers))
        kinds = len(NODE_KINDS)
        pooled = kinds * (3 * node_dim + edge_dim) + 3 * (kinds**2 + kinds) * edge_dim
        self.pooled_scale = FittedScale(1, pooled, centred=True)
        self.head = read_out(self.read_width(pooled), embedding_dim, embedding_dim, norm=False, dropout=dropout)

    @torch.no_grad()
    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Root mean squares of weights over the training models, of features over the first of each family and size.

        Each scale of features is set before the next one listens: it sees what it will see in training.
        """
        first: dict[Family, list[tuple[WeightSpec, Params]]] = {}
        super().fit_standardisation(_kept(stacks, first))
        for scale in [module for module in self.modules() if isinstance(module, FittedScale)]:
            scale.listening = True
            for part in (part for parts in first.values() for part in parts):
                self._pooled(*part)
            scale.settle()

    def pooled(self, stack: Stack) -> Tensor:
        """Invariants (models, ...) of the models of a stack."""
        return self._pooled(*stack.effective)

    def _pooled(self, spec: WeightSpec, params: Params) -> Tensor:
        """Invariant means (models, ...), scaled; their tails enter as logarithms."""
        graphs: DenseGraphs = self.scales(dense_graphs(spec, params))
        parities = parities_of(spec).to(graphs.edges)
        together = max(1, NODE_PAIRS_TOGETHER // graphs.edges.shape[1] ** 2)
        present = graphs.present.expand(len(graphs.edges), -1, -1, -1)
        parts = zip(*(part.split(together) for part in (graphs.edges, graphs.nodes, present)), strict=True)
        means = torch.cat([self._means(DenseGraphs(graphs.layout, *part), parities) for part in parts])
        return torch.asinh(self.pooled_scale(means[None], kinds_of(1).to(means.device))[0])

    def _means(self, graphs: DenseGraphs, parities: Parities) -> Tensor:
        """Means over nodes by kind, and over pairs of nodes by both kinds, self-loops apart (models, ...)."""
        kinds, pair_kinds = (of(parities.num).to(graphs.edges.device) for of in (kinds_of, pair_kinds_of))
        e = self.edge_scale(self._edges(graphs, parities, pair_kinds), pair_kinds)
        x = self.node_scale(self._nodes(graphs, parities, kinds), kinds)
        for layer in self.layers:
            e, x = layer(e, x)
        kind, count = graphs.layout.kind, len(NODE_KINDS)
        itself = torch.eye(len(kind), dtype=torch.bool, device=kind.device)
        pair = torch.where(itself, count**2 + kind, count * kind[:, None] + kind)
        nodes = one_hot_kinds(kind, x)
        pairs = F.one_hot(pair.flatten(), count**2 + count).to(x.dtype)
        even_nodes, even_edges = torch.cat([_even(x), loops(e, parities.num)[0]], dim=-1), _even(e).flatten(1, 2)
        return torch.cat([class_means(even_nodes, nodes), class_means(even_edges, pairs)], dim=1)

    def _edges(self, graphs: DenseGraphs, parities: Parities, kinds: Tensor) -> Tensor:
        """First edge features, (pair of parities, models, node, node, edge_dim): weights; and, even, what is where."""
        where, missing = graphs.layout, CHANNELS - graphs.edges.shape[-1]
        values = F.pad((parities.edges[:, :, None] * graphs.edges).flatten(0, 1), (0, missing))
        e: Tensor = self.edge_in(values, kinds) * self.edge_gain[where.edge_type + 1]
        present = F.pad(graphs.present, (0, missing))
        e[0] += self.edge_roles(torch.cat([present, present.transpose(1, 2)], dim=-1))
        e[0] += self.type_terms(where.edge_type, where.edge_type.T)
        return e

    def _nodes(self, graphs: DenseGraphs, parities: Parities, kinds: Tensor) -> Tensor:
        """First node features, (parity, models, node, node_dim): biases; and, even, what the declaration says."""
        where: Layout = graphs.layout
        missing = CHANNELS - graphs.nodes.shape[-1]
        x: Tensor = self.node_in(F.pad(parities.nodes[:, None] * graphs.nodes, (0, missing)), kinds)
        size = graphs.nodes.new_full((where.kind.shape[0], 1), where.kind.shape[0]).log()
        x[0] += self.node_roles(torch.cat([F.pad(where.node_roles.to(size), (0, missing)), size], dim=1))
        x[0] += self.node_terms(where.kind, where.layer, where.nonlinearity)
        x[0] += self.position(where.position + 1)
        return x


def _kept(stacks: Iterable[Stack], first: dict[Family, list[tuple[WeightSpec, Params]]]) -> Iterator[Stack]:
    """The same stacks, the first `FITTED_ON` models of each family and size kept in `first`."""
    for stack in stacks:
        spec, params = stack.effective
        parts = first.setdefault(stack.family, [])
        missing = FITTED_ON - sum(len(next(iter(part.values()))) for _, part in parts)
        if missing > 0:
            parts.append((spec, {name: value[:missing] for name, value in params.items()}))
        yield stack


def _even(features: Tensor) -> Tensor:
    """Even features, their squares, and the squares of all others (..., 3 * channel)."""
    squares = features.square()
    return torch.cat([features[0], squares[0], squares[1:].sum(0)], dim=-1)
