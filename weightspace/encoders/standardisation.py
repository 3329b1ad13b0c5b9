"""Scales of weights by connection type and channel, learned from training models and kept in checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.fields import Fields, Values, read_fields
from weightspace.graph import CHANNELS, EDGE_TYPES
from weightspace.store import Stack

_LOOPS = EDGE_TYPES.index("self")


class Scales(nn.Module):
    """Root mean squares of training weights: of matrices and diagonals by (connection type, channel), of vectors by
    (node kind, channel). What training never saw has scale 1.
    """

    edge: Tensor
    node: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edge", torch.ones(len(EDGE_TYPES), CHANNELS))
        self.register_buffer("node", torch.ones(len(NODE_KINDS), CHANNELS))

    def fit(self, stacks: Iterable[Stack]) -> None:
        """Learn the scales from training models, entries that a mask leaves out not counted."""
        sums = {id(scale): torch.zeros(2, *scale.shape, dtype=torch.float64) for scale in (self.edge, self.node)}
        for stack in stacks:
            for scale, index, part in self._parts(read_fields(*stack.effective)):
                present = torch.ones_like(part.values) if part.present is None else part.present
                squares = part.values.double().square()
                for total, value in zip(sums[id(scale)], (squares, present.double()), strict=True):
                    total[index].index_add_(0, part.channels.cpu(), value.flatten(0, -2).sum(0).cpu())
        for scale in (self.edge, self.node):
            square, count = sums[id(scale)]
            rms = torch.sqrt(square / count.clamp(min=1))
            scale.copy_(torch.where(rms > 0, rms, 1.0))

    def _parts(self, fields: Fields) -> Iterator[tuple[Tensor, int, Values]]:
        """(scales, row of the scales, values) of all that the fields hold."""
        for nodes, part in (*fields.edges.items(), *fields.triples.items()):
            yield self.edge, fields.types[nodes], part
        for part in fields.loops.values():
            yield self.edge, _LOOPS, part
        for axis, part in fields.nodes.items():
            yield self.node, fields.sets[axis].kind, part

    def of_edges(self, kind: int, part: Values) -> Tensor:
        """Scales (row,) of the rows of a matrix or product of one connection type."""
        return self.edge[kind, part.channels]

    def of_loops(self, part: Values) -> Tensor:
        """Scales (row,) of the rows of a diagonal."""
        return self.edge[_LOOPS, part.channels]

    def of_nodes(self, kind: int, part: Values) -> Tensor:
        """Scales (row,) of the rows of a vector on nodes of one kind."""
        return self.node[kind, part.channels]
