"""Linear permutation-equivariant maps between the fields of a weight space, shared by connection type and node kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.fields import Fields, NodeSet, Pair
from weightspace.encoders.lifts import States
from weightspace.encoders.positions import Patterns, num_codes
from weightspace.encoders.square_edges import add_diagonal_, sums
from weightspace.graph import EDGE_TYPES

Basis = Literal["complete", "six"]
TO, FROM, DIAGONAL = range(3)


class LinearMaps(nn.Module):
    """Linear equivariant maps from edge and node states (and a vector of the whole model) to new ones.

    With S_a the permutations of the node set a, maps that commute with all of them send entries to entries whose
    indices are equal where the map says so (Maron et al., ICLR 2019, arXiv 1812.09902): from e_ab to itself the entry,
    the opposite entry, the means over rows, over columns and of the diagonal placed on rows, columns or the diagonal,
    and the two totals placed everywhere or on the diagonal: 15 where a = b. With the indices of one axis in common:

        z_i  = sum over pairs of (mean_j e_ij A_to + mean_k e_ki A_from + e_ii A_diagonal) + x_i A_node
        z_i <- z_i + mean_k z_k A_mean + (graph vector) A_graph
        e_ij <- e_ij B + e_ji B_opposite + z_i C_to + z_j C_from + [i = j] z_i C_diagonal

    All weights are keyed by connection type or node kind, so that every family and size is read with the same ones.
    On ordered axes means are weighted by learned functions of the place, one for each channel of z, and what is placed
    there is multiplied by such functions: units keep exchangeable, inputs and outputs do not. Every equivariant linear
    map is reached if z has at least as many channels as all that is gathered at a node; with less, those of that rank.

    `basis="six"` keeps six of the 15 maps, those for MLPs with the recurrent matrix as its own neighbour (as in Herrmann
    et al., ICML 2024, arXiv 2403.11998): entry, total, means over rows and columns, each on rows and on columns.
    """

    def __init__(self, edge_dim: int, node_dim: int, max_ends: int, basis: Basis) -> None:
        super().__init__()
        types, kinds, both = len(EDGE_TYPES), len(NODE_KINDS), (node_dim, node_dim)
        self.edge_dim, self.node_dim, self.complete = edge_dim, node_dim, basis == "complete"

        def weights(*shape: int, inputs: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) / inputs**0.5)

        self.entry = weights(types, edge_dim, edge_dim, inputs=edge_dim)
        self.opposite = weights(types, edge_dim, edge_dim, inputs=edge_dim)
        self.gather = weights(types, 3, edge_dim, node_dim, inputs=edge_dim)
        self.spread = weights(types, 3, node_dim, edge_dim, inputs=2 * node_dim)
        self.node = weights(kinds, *both, inputs=2 * node_dim)
        self.mean = weights(kinds, *both, inputs=2 * node_dim)
        self.to_graph = weights(kinds, *both, inputs=2 * node_dim)
        self.from_graph = weights(kinds, *both, inputs=2 * node_dim)
        self.graph = weights(*both, inputs=2 * node_dim)
        self.bias = nn.Parameter(torch.zeros(kinds, node_dim))
        self.gather_places = Patterns(node_dim, num_codes(max_ends))
        self.spread_places = Patterns(node_dim, num_codes(max_ends))

    def forward(self, fields: Fields, states: States, graph: Tensor) -> tuple[dict[Pair, Tensor], dict[str, Tensor], Tensor]:
        """New edge states, node states and vectors of the models (models, node_dim), before any nonlinearity."""
        z = self._gathered(fields, states)
        means = {axis: self._mean(fields.sets[axis], value) for axis, value in z.items()}
        whole = graph @ self.graph
        for axis, mean in means.items():
            whole = whole + mean @ self.to_graph[fields.sets[axis].kind] / len(means)
        for axis, nodes in fields.sets.items():
            context = means[axis] @ self.mean[nodes.kind] + whole @ self.from_graph[nodes.kind]
            shared = context[:, None] * self.spread_places(nodes.size) if nodes.ordered else context[:, None]
            z[axis] = z[axis] + shared
        return self._edges(fields, states, z), z, whole

    def _mean(self, nodes: NodeSet, z: Tensor) -> Tensor:
        return (z * self.gather_places(nodes.size)).mean(1) if nodes.ordered else z.mean(1)

    def _gathered(self, fields: Fields, states: States) -> dict[str, Tensor]:
        """What every node hears from its edges and itself: (models, axis, node_dim) by axis."""
        heard: dict[str, list[Tensor]] = {axis: [x] for axis, x in states.nodes.items()}
        weights = {axis: [self.node[nodes.kind]] for axis, nodes in fields.sets.items()}
        placed: dict[str, list[Tensor]] = {axis: [] for axis in fields.sets}
        for pair, e in states.edges.items():
            to, source = pair
            kind, square = fields.types[pair], to == source
            present = states.present.get(pair)
            *both, diagonal = sums(e, diagonal=square and self.complete)
            for side, axis, other, total in zip((TO, FROM), pair, pair[::-1], both, strict=True):
                degree = e.shape[2 - side] if present is None else present.sum(2 - side).clamp(min=1)
                if fields.sets[other].ordered:
                    flat = (e if side == TO else e.transpose(1, 2)).flatten(2)
                    placed[axis].append(flat @ self._over_places(fields.sets[other], kind, side) / degree)
                    continue
                heard[axis].append(total / degree)
                weights[axis].append(self.gather[kind, side])
            if diagonal is not None:
                heard[to].append(diagonal)
                weights[to].append(self.gather[kind, DIAGONAL])
        z = {}
        for axis, nodes in fields.sets.items():
            z[axis] = torch.cat(heard[axis], -1) @ torch.cat(weights[axis]) + self.bias[nodes.kind]
            for part in placed[axis]:
                z[axis] = z[axis] + part
        return z

    def _over_places(self, other: NodeSet, kind: int, side: int) -> Tensor:
        """Weights (position * edge_dim, node_dim) of a sum over an ordered axis."""
        return (self.gather[kind, side] * self.gather_places(other.size)[:, None]).flatten(0, 1)

    def _edges(self, fields: Fields, states: States, z: Mapping[str, Tensor]) -> dict[Pair, Tensor]:
        edges = {}
        for pair, e in states.edges.items():
            kind, (to, source) = fields.types[pair], pair
            u = self._mixed(states, pair, kind)
            for side, axis, other in ((TO, to, source), (FROM, source, to)):
                u = u.add_(self._placed(fields.sets[other], z[axis], self.spread[kind, side], side))
            if to == source and self.complete:
                u = add_diagonal_(u, z[to] @ self.spread[kind, DIAGONAL])
            edges[pair] = u
        return edges

    def _mixed(self, states: States, pair: Pair, kind: int) -> Tensor:
        """Each entry and, if there is one, its opposite, by channel."""
        e, opposite = states.edges[pair], states.edges.get(pair[::-1])
        if opposite is None or not self.complete:
            return e @ self.entry[kind]
        if opposite is not e:
            return (e @ self.entry[kind]).add_((opposite @ self.opposite[kind]).transpose(1, 2))
        entry, other = (e @ torch.cat([self.entry[kind], self.opposite[kind]], 1)).split(self.edge_dim, dim=-1)
        return entry + other.transpose(1, 2)

    def _placed(self, other: NodeSet, z: Tensor, weight: Tensor, side: int) -> Tensor:
        """Node values on all edges of a node, broadcastable to (models, to, from, channel)."""
        if not other.ordered:
            return (z @ weight)[:, :, None] if side == TO else (z @ weight)[:, None]
        by_place = weight[:, None] * self.spread_places(other.size).T[:, :, None]
        placed = (z @ by_place.flatten(1)).unflatten(-1, by_place.shape[1:])
        return placed if side == TO else placed.transpose(1, 2)
