"""Linear permutation-equivariant maps between the fields of a weight space, shared by connection type and node kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.edge_functions import square_update, sums
from weightspace.encoders.fields import Fields, Pair
from weightspace.encoders.lifts import States
from weightspace.encoders.positions import Patterns, num_codes
from weightspace.graph import EDGE_TYPES

Basis = Literal["complete", "six", "products"]
TO, FROM, DIAGONAL = range(3)


class LinearMaps(nn.Module):
    """Weights of all linear equivariant maps from edge states, node states and a vector of the whole model to new ones.

    With permutations of each node set, maps that commute with all of them send entries to entries whose indices are
    equal where the map says so (Maron et al., ICLR 2019, arXiv 1812.09902): from the states of a square matrix to
    themselves the entry, the opposite entry, the means over rows, over columns and of the diagonal placed on rows,
    columns or the diagonal, and the two totals placed everywhere or on the diagonal, 15 in all. They are

        z_i  = sum over pairs of (mean_j e_ij A_to + mean_k e_ki A_from + e_ii A_diagonal) + x_i A_node
        z_i <- z_i + mean_k z_k A_mean + (vector of the model) A_graph
        e_ij <- e_ij B + e_ji B_opposite + z_i C_to + z_j C_from + [i = j] z_i C_diagonal

    with weights by connection type or node kind, so that every family and size is read with the same ones. On ordered
    axes means are weighted by learned functions of the place, one for each channel of z, and what is placed there is
    multiplied by such functions: units are exchangeable, inputs and outputs are not. The maps span all
    equivariant linear maps; one layer reaches each of them only where z has as many channels as are gathered at a node,
    and outputs at places of ordered axes have rank 1 per channel and layer.

    `basis="six"` keeps six of the 15 maps, those of an MLP whose layers are one recurrent matrix (as in Herrmann et
    al., ICML 2024, arXiv 2403.11998): entry, total, means over rows and columns, each placed on rows and on columns.
    "products" keeps all, beside products that are no part of this layer.
    """

    def __init__(self, edge_dim: int, node_dim: int, max_ends: int, basis: Basis) -> None:
        super().__init__()
        types, kinds, both = len(EDGE_TYPES), len(NODE_KINDS), (node_dim, node_dim)
        self.edge_dim, self.node_dim, self.complete = edge_dim, node_dim, basis != "six"

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

    def over(self, fields: Fields) -> Maps:
        """The maps between the fields of one declaration, to be used for as many models as there are."""
        return Maps(self, fields)


class Maps:
    """The maps of `LinearMaps` between the fields of one declaration: weights joined, one product per node set.

    Shapes: states, vector of the model (models, node_dim) -> new edge states (models, to, from, channel), node states
    (models, axis, node_dim) and vector of the model, before any nonlinearity.
    """

    def __init__(self, maps: LinearMaps, fields: Fields) -> None:
        self.sets, self.complete, self.graph = fields.sets, maps.complete, maps.graph
        by_type = zip(*(bank.unbind() for bank in (maps.entry, maps.opposite, maps.gather, maps.spread)), strict=True)
        by_kind = zip(*(bank.unbind() for bank in (maps.node, maps.bias, maps.mean, maps.to_graph, maps.from_graph)),
                      strict=True)  # fmt: skip
        types, kinds = list(by_type), list(by_kind)
        self.nodes = {axis: kinds[nodes.kind] for axis, nodes in fields.sets.items()}
        self.gather_places = {a: maps.gather_places(nodes.size) for a, nodes in fields.sets.items() if nodes.ordered}
        self.spread_places = {a: maps.spread_places(nodes.size) for a, nodes in fields.sets.items() if nodes.ordered}
        pairs = [pair for pair in fields.types if len(pair) == 2]
        self.pairs: list[Pair] = [(pair[0], pair[1]) for pair in pairs]
        self.types = {pair: types[fields.types[pair]] for pair in self.pairs}
        heard = {axis: [self.nodes[axis][0]] for axis in fields.sets}
        placed: dict[str, list[Tensor]] = {axis: [] for axis in fields.sets}
        for pair in self.pairs:
            for axis, other, side in self._sides(pair):
                heard[axis].append(self._gather(pair, other, side, masked=fields.masked(pair)))
                placed[axis].append(self._spread(pair, other, side))
        self.heard = {axis: torch.cat(parts) for axis, parts in heard.items()}
        self.widths = {axis: [part.shape[1] for part in parts] for axis, parts in placed.items()}
        self.placed = {axis: torch.cat(parts, 1) for axis, parts in placed.items() if parts}
        self.entries = {pair: self._entry(pair) for pair in self.pairs}

    def __call__(self, states: States, graph: Tensor) -> tuple[dict[Pair, Tensor], dict[str, Tensor], Tensor]:
        z = self._gathered(states)
        means = {axis: (x * self.gather_places.get(axis, 1)).mean(1) for axis, x in z.items()}
        whole = graph @ self.graph
        for axis, mean in means.items():
            whole = whole + mean @ self.nodes[axis][3] / len(means)
        for axis in z:
            *_, of_mean, _, of_graph = self.nodes[axis]
            context = (means[axis] @ of_mean + whole @ of_graph)[:, None]
            z[axis] = z[axis] + context * self.spread_places.get(axis, 1)
        parts = {axis: iter((z[axis] @ weight).split(self.widths[axis], -1)) for axis, weight in self.placed.items()}
        return {pair: self._edge(states, pair, parts) for pair in self.pairs}, z, whole

    def _sides(self, pair: Pair) -> list[tuple[str, str, int]]:
        """(axis that hears, axis that is summed over, side) of a pair: its two ends, and the diagonal of a square."""
        to, source = pair
        sides = [(to, source, TO), (source, to, FROM)]
        return [*sides, (to, to, DIAGONAL)] if to == source and self.complete else sides

    def _gather(self, pair: Pair, other: str, side: int, *, masked: bool) -> Tensor:
        """Weights (channel or position * channel, node_dim) of a mean: over places each of them has its own."""
        weight: Tensor = self.types[pair][2][side]
        if side == DIAGONAL:
            return weight
        if other in self.gather_places:
            weight = (weight * self.gather_places[other][:, None]).flatten(0, 1)
        return weight if masked else weight / self.sets[other].size

    def _spread(self, pair: Pair, other: str, side: int) -> Tensor:
        """Weights (node_dim, channel or position * channel) from a node to its edges."""
        weight: Tensor = self.types[pair][3][side]
        if side == DIAGONAL or other not in self.spread_places:
            return weight
        placed: Tensor = weight[:, None] * self.spread_places[other].T[:, :, None]
        return placed.flatten(1)

    def _entry(self, pair: Pair) -> tuple[Tensor, Tensor | None]:
        """Weights of an entry and of its opposite, side by side for a square; None where there is no opposite."""
        entry, opposite, *_ = self.types[pair]
        if not self.complete or pair[::-1] not in self.types:
            return entry, None
        return (torch.cat([entry, opposite], 1), None) if self._is_joined(pair) else (entry, opposite)

    def _gathered(self, states: States) -> dict[str, Tensor]:
        """What every node hears from itself and its edges: (models, axis, node_dim) by axis."""
        heard: dict[str, list[Tensor]] = {axis: [x] for axis, x in states.nodes.items()}
        for pair in self.pairs:
            e, present = states.edges[pair], states.present.get(pair)
            *both, diagonal = sums(e, diagonal=pair[0] == pair[1] and self.complete)
            for axis, other, side in self._sides(pair):
                if side == DIAGONAL:
                    assert diagonal is not None
                    heard[axis].append(diagonal)
                    continue
                total = both[side]
                if other in self.gather_places:
                    total = (e if side == TO else e.transpose(1, 2)).flatten(2)
                heard[axis].append(total if present is None else total / present.sum(2 - side).clamp(min=1))
        bias = {axis: weights[1] for axis, weights in self.nodes.items()}
        return {axis: torch.cat(parts, -1) @ self.heard[axis] + bias[axis] for axis, parts in heard.items()}

    def _edge(self, states: States, pair: Pair, parts: dict[str, Iterator[Tensor]]) -> Tensor:
        e, (entry, opposite) = states.edges[pair], self.entries[pair]
        placed = [next(parts[axis]) for axis, _, _ in self._sides(pair)]
        if self._is_joined(pair):
            return square_update(e, entry, placed[TO], placed[FROM], placed[DIAGONAL] if self.complete else None)
        u = e @ entry
        if opposite is not None:
            u = u + (states.edges[pair[::-1]] @ opposite).transpose(1, 2)
        for value, (_, other, side) in zip(placed, self._sides(pair), strict=True):
            u = u + self._on_edges(value, other, side)
        return u

    def _is_joined(self, pair: Pair) -> bool:
        """Whether a pair has a product with entries and opposites at once: a square of units."""
        return pair[0] == pair[1] and pair[0] not in self.spread_places

    def _on_edges(self, value: Tensor, other: str, side: int) -> Tensor:
        """Node values on all edges of a node, or on its own, broadcastable to (models, to, from, channel)."""
        if side == DIAGONAL:
            return torch.diag_embed(value.mT).permute(0, 2, 3, 1)
        if other in self.spread_places:
            value = value.unflatten(-1, (self.sets[other].size, -1))
            return value if side == TO else value.transpose(1, 2)
        return value[:, :, None] if side == TO else value[:, None]
