"""First states of edges and nodes: weights of a stack, lifted to channels by role, connection type and node kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS, NONLINEARITIES
from weightspace.encoders.fields import Fields, Pair, Values
from weightspace.encoders.positions import Patterns, codes, num_codes
from weightspace.encoders.standardisation import Scales
from weightspace.graph import CHANNELS, EDGE_TYPES


@dataclass(frozen=True, kw_only=True, eq=False)
class States:
    """States of a stack: edges[to, from] (models, to, from, channel) and nodes[axis] (models, axis, channel).

    present[to, from] (models, to, from, 1) is 1 where an edge exists, and missing where all do.
    """

    edges: dict[Pair, Tensor]
    nodes: dict[str, Tensor]
    present: dict[Pair, Tensor]


class EdgeLift(nn.Module):
    """First edge states: e_ij = sum over rows r of w_ij^r A_r + (which rows are there), by connection type.

    Entries of a tensor with three node axes, T_kab, become relu(T_kab A) first, and then, averaged over b and over a, a
    part of the edges (k, a) and (k, b). Sources and targets on ordered axes multiply channels by learned functions of
    their place. With `constant` False a weight of 0 lifts to 0 wherever no mask is declared.
    """

    def __init__(self, edge_dim: int, max_ends: int, *, constant: bool) -> None:
        super().__init__()
        self.constant = constant
        self.weight = nn.Parameter(torch.randn(len(EDGE_TYPES), CHANNELS, edge_dim))
        self.present = nn.Parameter(torch.randn(len(EDGE_TYPES), CHANNELS, edge_dim) * 0.3)
        self.triple = nn.Parameter(torch.randn(CHANNELS, edge_dim))
        self.sides = nn.Parameter(torch.randn(2, edge_dim, edge_dim) / edge_dim**0.5)
        self.to_places = Patterns(edge_dim, num_codes(max_ends))
        self.from_places = Patterns(edge_dim, num_codes(max_ends))

    def forward(self, fields: Fields, scales: Scales) -> tuple[dict[Pair, Tensor], dict[Pair, Tensor]]:
        """States (models, to, from, channel) and presence (models, to, from, 1), where masked, of every pair."""
        edges, present = {}, {}
        for pair, part in fields.edges.items():
            kind = fields.types[pair]
            weight = self.weight[kind, part.channels] / scales.of_edges(kind, part)[:, None]
            e = part.values @ weight
            if part.present is not None:
                present[pair] = part.present.amax(-1, keepdim=True)
                e = e + part.present @ self.present[kind, part.channels]
            elif self.constant:
                e = e + self.present[kind, part.channels].sum(0)
            edges[pair] = self._placed(fields, pair, e)
        for nodes, part in fields.triples.items():
            for pair, value in self._pairs(nodes, part, scales.of_edges(fields.types[nodes], part)):
                placed = self._placed(fields, pair, value)
                edges[pair] = edges[pair] + placed if pair in edges else placed
        return edges, present

    def _pairs(self, nodes: tuple[str, str, str], part: Values, scale: Tensor) -> list[tuple[Pair, Tensor]]:
        to, first, second = nodes
        t = torch.relu((part.values / scale) @ self.triple[part.channels])
        return [((to, first), t.mean(3) @ self.sides[0]), ((to, second), t.mean(2) @ self.sides[1])]

    def _placed(self, fields: Fields, pair: Pair, e: Tensor) -> Tensor:
        to, source = (fields.sets[axis] for axis in pair)
        if source.ordered:
            e = e * self.from_places(source.size)
        return e * self.to_places(to.size)[:, None] if to.ordered else e


class NodeLift(nn.Module):
    """First node states: vectors and diagonals by role, place on ordered axes, kind, layer, nonlinearity, log sizes."""

    def __init__(self, node_dim: int, max_layers: int, max_ends: int) -> None:
        super().__init__()
        self.number = num_codes(max_ends)
        self.vector = nn.Parameter(torch.randn(len(NODE_KINDS), CHANNELS, node_dim) * 0.5)
        self.vector_present = nn.Parameter(torch.randn(len(NODE_KINDS), CHANNELS, node_dim) * 0.3)
        self.loop = nn.Parameter(torch.randn(len(NODE_KINDS), CHANNELS, node_dim) * 0.5)
        self.loop_present = nn.Parameter(torch.randn(len(NODE_KINDS), CHANNELS, node_dim) * 0.3)
        self.place = nn.Linear(self.number, node_dim, bias=False)
        self.size = nn.Linear(1, node_dim)
        self.kind = nn.Embedding(len(NODE_KINDS), node_dim)
        self.layer = nn.Embedding(max_layers, node_dim)
        self.nonlinearity = nn.Embedding(len(NONLINEARITIES), node_dim)

    def forward(self, fields: Fields, scales: Scales) -> dict[str, Tensor]:
        """States (models, axis, channel) of every node set."""
        states = {}
        for axis, nodes in fields.sets.items():
            size = fields.like.new_full((1,), float(nodes.size)).log()
            x = self.size(size) + self.kind.weight[nodes.kind] + self.layer.weight[nodes.layer]
            x = x + self.nonlinearity.weight[nodes.nonlinearity]
            if nodes.ordered:
                x = x + self.place(codes(nodes.size, self.number, fields.like))
            if axis in fields.nodes:
                part = fields.nodes[axis]
                scale = scales.of_nodes(nodes.kind, part)
                x = x + _rows(part, scale, self.vector[nodes.kind], self.vector_present[nodes.kind])
            if axis in fields.loops:
                part = fields.loops[axis]
                x = x + _rows(part, scales.of_loops(part), self.loop[nodes.kind], self.loop_present[nodes.kind])
            states[axis] = x.expand(fields.models, nodes.size, -1)
        return states


def _rows(part: Values, scale: Tensor, weight: Tensor, present: Tensor) -> Tensor:
    """Sum over rows of standardised values times their weights, and which rows are there."""
    known = present[part.channels].sum(0) if part.present is None else part.present @ present[part.channels]
    return (part.values / scale) @ weight[part.channels] + known
