"""Layers of all linear permutation-equivariant maps of a weight space, with pointwise nonlinearities between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.edge_functions import moments
from weightspace.encoders.edge_products import EdgeProducts, Products
from weightspace.encoders.fields import Fields
from weightspace.encoders.graph_encoder import Edges, FieldEncoder, Invariants
from weightspace.encoders.lifts import EdgeLift, NodeLift, States
from weightspace.encoders.linear_maps import Basis, LinearMaps, Maps
from weightspace.encoders.pooling import read_out
from weightspace.encoders.scales import FieldScales
from weightspace.graph import EDGE_TYPES

Layer = tuple[Maps, Products | None]


class EquivariantLinear(FieldEncoder):
    """Complete linear equivariant maps and relu, invariant to permutations of hidden units and factors.

    Weight spaces as in DWSNets (Navon et al., ICML 2023, arXiv 2301.12780), NFN (Zhou et al., NeurIPS 2023, arXiv
    2302.14040) and universal neural functionals (Zhou et al., NeurIPS 2024, arXiv 2402.05232), with both axes of a
    recurrent matrix tied: see `LinearMaps`, and there for the option `basis`. States are e <- e + relu(u), x <- x +
    silu(z); pooled by connection type and node kind: means, mean squares, and those of diagonals. Such networks see two
    units at a time; `basis="products"` adds matrix products of edge states, e <- e + relu(u) + p (see `EdgeProducts`),
    for labels that need traces of third and higher powers, such as the largest real part of the eigenvalues.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        edge_dim: int = 8,
        node_dim: int = 40,
        num_layers: int = 3,
        basis: Basis = "complete",
        dropout: float = 0.0,
        max_layers: int = 8,
        max_ends: int = 256,
        summaries: bool = False,
    ) -> None:
        sizes = {"edge_dim": edge_dim, "node_dim": node_dim, "num_layers": num_layers}
        super().__init__(embedding_dim, sizes, max_layers, max_ends, summaries)
        if basis not in ("complete", "six", "products"):
            raise ValueError(f"`basis` (={basis!r}) must be 'complete', 'six' or 'products'.")
        self.complete = basis != "six"
        self.scales = FieldScales()
        self.edges = EdgeLift(edge_dim, max_ends, constant=True)
        self.nodes = NodeLift(node_dim, max_layers, max_ends)
        self.layers = nn.ModuleList(LinearMaps(edge_dim, node_dim, max_ends, basis) for _ in range(num_layers))
        with_products = num_layers if basis == "products" else 0
        self.products = nn.ModuleList(EdgeProducts(edge_dim, max(1, edge_dim // 2)) for _ in range(with_products))
        self.edge_dim, self.node_dim, self.edge_stats = edge_dim, node_dim, 4 * edge_dim
        pooled = len(EDGE_TYPES) * self.edge_stats + 2 * len(NODE_KINDS) * node_dim + node_dim
        self.head = read_out(self.read_width(pooled), 2 * embedding_dim, embedding_dim, dropout=dropout)

    def over(self, fields: Fields) -> Invariants:
        """The invariants of models of one declaration, whose maps are put together once."""
        maps = [layer.over(fields) for layer in self.layers if isinstance(layer, LinearMaps)]
        products = [layer.over(fields) for layer in self.products if isinstance(layer, EdgeProducts)]
        layers = list(zip_longest(maps, products))

        def invariants(chunk: Fields, edges: Edges, nodes: dict[str, Tensor]) -> Tensor:
            return self._pooled(chunk, States(edges=edges[0], nodes=nodes, present=edges[1]), layers)

        return invariants

    def _pooled(self, fields: Fields, states: States, layers: Sequence[Layer]) -> Tensor:
        """Invariants (models, pooled) of the last states."""
        graph, present = fields.like.new_zeros(fields.models, self.node_dim), states.present
        for maps, products in layers:
            u, z, whole = maps(states, graph)
            added = products(states) if products else {}
            edges = {}
            for pair, value in u.items():
                value = torch.relu_(value)
                value = value + added[pair] if pair in added else value
                edges[pair] = states.edges[pair] + (value * present[pair] if pair in present else value)
            nodes = {axis: states.nodes[axis] + silu(value) for axis, value in z.items()}
            states, graph = States(edges=edges, nodes=nodes, present=present), graph + silu(whole)
        return torch.cat([self._pooled_edges(fields, states), self._pooled_nodes(fields, states), graph], dim=-1)

    def _pooled_edges(self, fields: Fields, states: States) -> Tensor:
        by_type: dict[int, list[Tensor]] = {}
        for pair, e in states.edges.items():
            values = [*moments(e)]
            if pair[0] == pair[1] and self.complete:
                diagonal = e.diagonal(dim1=1, dim2=2)
                values += [diagonal.mean(-1), diagonal.square().mean(-1)]
            stats = torch.cat(values, -1)
            stats = pad(stats, (0, self.edge_stats - stats.shape[-1]))
            by_type.setdefault(fields.types[pair], []).append(stats)
        return _by_class(by_type, len(EDGE_TYPES), self.edge_stats, fields)

    def _pooled_nodes(self, fields: Fields, states: States) -> Tensor:
        by_kind: dict[int, list[Tensor]] = {}
        for axis, x in states.nodes.items():
            by_kind.setdefault(fields.sets[axis].kind, []).append(torch.cat([x.mean(1), x.square().mean(1)], -1))
        return _by_class(by_kind, len(NODE_KINDS), 2 * self.node_dim, fields)


def _by_class(values: dict[int, list[Tensor]], number: int, width: int, fields: Fields) -> Tensor:
    """Means (models, class * width) of the values of each class, 0 where it has none."""
    nothing = fields.like.new_zeros(fields.models, width)
    means = [torch.stack(values[i]).mean(0) if i in values else nothing for i in range(number)]
    return torch.cat(means, dim=-1)
