"""Root mean squares of training weights, by which encoders divide weights: of dense graphs, and of fields."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.fields import Fields, Values, read_fields
from weightspace.encoders.graph_level import Fitted
from weightspace.graph import CHANNELS, EDGE_TYPES, DenseGraphs, dense_graphs
from weightspace.store import Stack

_LOOPS = EDGE_TYPES.index("self")


class MeanSquares:
    """Sums of squares and numbers of training weights by (class, channel), from which one buffer of scales is set."""

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale
        self.square, self.count = torch.zeros(2, *scale.shape, dtype=torch.float64, device=scale.device)

    def add(self, classes: Tensor, channels: Tensor, squares: Tensor, counts: Tensor) -> None:
        """Add squares and numbers (element, channel) of elements of the classes (element,)."""
        cells = (classes[:, None] * self.scale.shape[1] + channels).flatten().to(self.scale.device)
        for total, values in ((self.square, squares), (self.count, counts)):
            total.view(-1).index_add_(0, cells, values.flatten().to(total))

    def settle(self) -> None:
        """Set the scales; 1 where training had no weights, or zeros alone."""
        rms = torch.sqrt(self.square / self.count.clamp(min=1))
        self.scale.copy_(torch.where(rms > 0, rms, 1.0))


def add_graphs(graphs: DenseGraphs, edge: MeanSquares, node: MeanSquares, *, constants: bool) -> None:
    """Add weights of dense graphs, with connections of weight 1 by declaration only if `constants`."""
    where, channels = graphs.layout, torch.arange(graphs.edges.shape[-1], device=graphs.edges.device)
    free = 1.0 if constants or where.constant is None else 1 - where.constant
    present = (graphs.present * free).expand_as(graphs.edges).double()
    squares = (graphs.edges * free).double().square()
    types = where.edge_type.clamp(min=0).flatten()
    edge.add(types, channels, squares.sum(0).flatten(0, 1), present.sum(0).flatten(0, 1))
    roles = where.node_roles.expand_as(graphs.nodes).double()
    node.add(where.kind, channels, graphs.nodes.double().square().sum(0), roles.sum(0))


def divided(graphs: DenseGraphs, edge_scale: Tensor, node_scale: Tensor, *, constants: bool) -> tuple[Tensor, Tensor]:
    """Weights (models, node, node, channel) and (models, node, channel) of dense graphs over their scales.

    Connections of weight 1 by declaration are divided only if `constants`.
    """
    where, used = graphs.layout, graphs.edges.shape[-1]
    scale = edge_scale[where.edge_type, :used]
    if not constants and where.constant is not None:
        scale = torch.where(where.constant > 0, 1.0, scale)
    return graphs.edges / scale, graphs.nodes / node_scale[where.kind, :used]


class Scales(Fitted):
    """Scales of weights as buffers: of edges by (connection type, channel), of nodes by (node kind, channel).

    Weights that no training model has are left as they are.
    """

    def __init__(self, edge: str, node: str) -> None:
        super().__init__()
        self._names = edge, node
        self.register_buffer(edge, torch.ones(len(EDGE_TYPES), CHANNELS))
        self.register_buffer(node, torch.ones(len(NODE_KINDS), CHANNELS))
        self._sums: tuple[MeanSquares, MeanSquares] | None = None

    @abstractmethod
    def add_weights(self, stack: Stack, edge: MeanSquares, node: MeanSquares) -> None:
        """Add the weights of training models to the sums of edges and of nodes."""

    def add(self, stack: Stack) -> None:
        """Take the weights of training models into account."""
        if self._sums is None:
            edge, node = (MeanSquares(self.get_buffer(name)) for name in self._names)
            self._sums = edge, node
        self.add_weights(stack, *self._sums)

    def settle(self) -> None:
        """Set the scales from all that was added, if anything was."""
        for sums in self._sums or ():
            sums.settle()
        self._sums = None


class WeightScales(Scales):
    """Scales of the weights of dense graphs; connections of weight 1 by declaration keep it."""

    edge_scale: Tensor
    node_scale: Tensor

    def __init__(self) -> None:
        super().__init__("edge_scale", "node_scale")

    def add_weights(self, stack: Stack, edge: MeanSquares, node: MeanSquares) -> None:
        """Add the weights of a stack's graphs."""
        add_graphs(dense_graphs(*stack.effective), edge, node, constants=False)

    def forward(self, graphs: DenseGraphs) -> DenseGraphs:
        """The same graphs with standardised weights, in the dtype of the module."""
        edges, nodes = divided(graphs, self.edge_scale, self.node_scale, constants=False)
        dtype = self.edge_scale.dtype
        return replace(graphs, edges=edges.to(dtype), nodes=nodes.to(dtype), present=graphs.present.to(dtype))


class FieldScales(Scales):
    """Scales of fields: of matrices, products and diagonals as edges, of vectors as nodes."""

    edge: Tensor
    node: Tensor

    def __init__(self) -> None:
        super().__init__("edge", "node")

    def add_weights(self, stack: Stack, edge: MeanSquares, node: MeanSquares) -> None:
        """Add the weights of a stack's fields, entries that a mask leaves out not counted."""
        fields = read_fields(*stack.effective)
        for kind, part in _of_edges(fields):
            _add_part(edge, kind, part)
        for axis, part in fields.nodes.items():
            _add_part(node, fields.sets[axis].kind, part)

    def of_edges(self, kind: int, part: Values) -> Tensor:
        """Scales (row,) of the rows of a matrix or product of one connection type."""
        return self.edge[kind, part.channels]

    def of_loops(self, part: Values) -> Tensor:
        """Scales (row,) of the rows of a diagonal."""
        return self.edge[_LOOPS, part.channels]

    def of_nodes(self, kind: int, part: Values) -> Tensor:
        """Scales (row,) of the rows of a vector on nodes of one kind."""
        return self.node[kind, part.channels]


def _of_edges(fields: Fields) -> Iterator[tuple[int, Values]]:
    """(connection type, values) of all matrices, products and diagonals."""
    for nodes, part in (*fields.edges.items(), *fields.triples.items()):
        yield fields.types[nodes], part
    for part in fields.loops.values():
        yield _LOOPS, part


def _add_part(sums: MeanSquares, kind: int, part: Values) -> None:
    present = torch.ones_like(part.values) if part.present is None else part.present
    squares, counts = (value.double().flatten(0, -2).sum(0)[None] for value in (part.values.double().square(), present))
    sums.add(part.channels.new_tensor([kind]), part.channels, squares, counts)
