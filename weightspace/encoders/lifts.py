"""First states of edges and nodes: weights of a stack, lifted to channels by role, connection type and node kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS, NONLINEARITIES
from weightspace.encoders.fields import Fields, NodeSet, Pair, Values
from weightspace.encoders.positions import Patterns, codes, num_codes
from weightspace.encoders.scales import FieldScales
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

    def over(self, fields: Fields, scales: FieldScales) -> Lift:
        """The lift of the edges of one declaration, to be used for as many models as there are."""
        return Lift(self, fields, scales)

    def rows(self, kind: int, part: Values, scale: Tensor, *, masked: bool) -> tuple[Tensor, Tensor | None]:
        """Weights (row, channel) of values, and those of what is there: by row, or their sum, or None."""
        weight, present = self.weight[kind, part.channels] / scale[:, None], self.present[kind, part.channels]
        if masked:
            return weight, present
        return weight, present.sum(0) if self.constant else None


class Lift:
    """The first edge states of one declaration: fields -> states and presence (models, to, from, 1) where masked."""

    def __init__(self, lift: EdgeLift, fields: Fields, scales: FieldScales) -> None:
        self.sides = lift.sides
        self.pairs = {}
        for pair, part in fields.edges.items():
            scale = scales.of_edges(fields.types[pair], part)
            self.pairs[pair] = lift.rows(fields.types[pair], part, scale, masked=fields.masked(pair))
        self.triples = {
            nodes: lift.triple[part.channels] / scales.of_edges(fields.types[nodes], part)[:, None]
            for nodes, part in fields.triples.items()
        }
        ordered = {axis: nodes.size for axis, nodes in fields.sets.items() if nodes.ordered}
        self.to_places = {axis: lift.to_places(size)[:, None] for axis, size in ordered.items()}
        self.from_places = {axis: lift.from_places(size) for axis, size in ordered.items()}

    def __call__(self, fields: Fields) -> tuple[dict[Pair, Tensor], dict[Pair, Tensor]]:
        edges, present = {}, {}
        for pair, part in fields.edges.items():
            weight, there = self.pairs[pair]
            e = part.values @ weight
            if there is not None:
                e = e + (there if part.present is None else part.present @ there)
            if part.present is not None:
                present[pair] = part.present.amax(-1, keepdim=True)
            edges[pair] = self._placed(pair, e)
        for (to, first, second), part in fields.triples.items():
            t = torch.relu(part.values @ self.triples[to, first, second])
            for pair, axis, side in (((to, first), 3, 0), ((to, second), 2, 1)):
                value = self._placed(pair, t.mean(axis) @ self.sides[side])
                edges[pair] = edges[pair] + value if pair in edges else value
        return edges, present

    def _placed(self, pair: Pair, e: Tensor) -> Tensor:
        for places, axis in ((self.to_places, pair[0]), (self.from_places, pair[1])):
            e = e * places[axis] if axis in places else e
        return e


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

    def over(self, fields: Fields, scales: FieldScales) -> Nodes:
        """The lift of the nodes of one declaration, to be used for as many models as there are."""
        return Nodes(self, fields, scales)

    def declared(self, nodes: NodeSet, like: Tensor) -> Tensor:
        """What is known of nodes without their weights: (axis or 1, channel)."""
        x = self.size(like.new_full((1, 1), float(nodes.size)).log()) + self.kind.weight[nodes.kind]
        x = x + self.layer.weight[nodes.layer] + self.nonlinearity.weight[nodes.nonlinearity]
        placed: Tensor = x + self.place(codes(nodes.size, self.number, like)) if nodes.ordered else x
        return placed


class Nodes:
    """The first node states of one declaration: fields -> states (models, axis, channel) of every node set."""

    def __init__(self, lift: NodeLift, fields: Fields, scales: FieldScales) -> None:
        self.declared = {axis: lift.declared(nodes, fields.like) for axis, nodes in fields.sets.items()}
        self.vectors, self.loops = {}, {}
        for axis, part in fields.nodes.items():
            kind = fields.sets[axis].kind
            weight = lift.vector[kind, part.channels] / scales.of_nodes(kind, part)[:, None]
            self.vectors[axis] = weight, lift.vector_present[kind, part.channels]
        for axis, part in fields.loops.items():
            kind = fields.sets[axis].kind
            weight = lift.loop[kind, part.channels] / scales.of_loops(part)[:, None]
            self.loops[axis] = weight, lift.loop_present[kind, part.channels]

    def __call__(self, fields: Fields) -> dict[str, Tensor]:
        states = {}
        for axis, nodes in fields.sets.items():
            x = self.declared[axis]
            for values, weights in ((fields.nodes, self.vectors), (fields.loops, self.loops)):
                if axis in values:
                    part, (weight, present) = values[axis], weights[axis]
                    there = present.sum(0) if part.present is None else part.present @ present
                    x = x + there + part.values @ weight
            states[axis] = x.expand(fields.models, nodes.size, -1)
        return states
