"""A perceptron on mean, variance and quantiles of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.readings import Readings
from weightspace.features import QUANTILES
from weightspace.graph import CHANNELS, EDGE_TYPES, DenseGraphs, Layout, dense_graphs
from weightspace.store import Stack

COLUMNS = 2 + len(QUANTILES)
"""Mean, variance, quantiles 0, .25, .5, .75, 1."""
_SELF = EDGE_TYPES.index("self")


class Statistics(Readings):
    """Mean, variance and quantiles of weights by connection type and role, and of biases by node kind and role.

    The simple features of Unterthiner et al. (Predicting neural network accuracy from weights, arXiv 2002.11448), but
    pooled by role and not by tensor, so that families and sizes mix. Self-connections are a type of their own, those
    within products of two units included: so the mean of the diagonal is seen, and rows that move without their
    columns are. Weights that a model's mask removes are left out. Invariant to permutations of hidden units and
    factors by construction.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    symmetry: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(self, embedding_dim: int = 64, width: int = 144, dropout: float = 0.0) -> None:
        groups = (len(EDGE_TYPES) + len(NODE_KINDS)) * CHANNELS
        super().__init__(embedding_dim, width, dropout, {"weights": (groups, COLUMNS)})

    def read(self, stack: Stack) -> dict[str, Tensor]:
        """The table `weights` (models, group, column), a group per (connection type or node kind, role, slot)."""
        graphs = dense_graphs(*stack.effective)
        shape = (len(stack), len(EDGE_TYPES) + len(NODE_KINDS), CHANNELS, COLUMNS)
        table = graphs.edges.new_full(shape, torch.nan, dtype=torch.float64)
        for kind, channel, values, present in _weights(graphs):
            table[:, kind, channel] = described(values.double(), present)
        return {"weights": table.flatten(1, 2)}


def _weights(graphs: DenseGraphs) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(type, channel, values (models, weight), present (models or 1, weight)) of all there are; node kinds follow."""
    where = graphs.layout
    types = _types(where)
    for kind in types[types >= 0].unique().tolist():
        of_kind = types == kind
        for channel in where.edge_roles[of_kind].any(0).nonzero().flatten().tolist():
            chosen = of_kind & (where.edge_roles[..., channel] > 0)
            yield kind, channel, graphs.edges[..., channel][:, chosen], graphs.present[..., channel][:, chosen] > 0
    for kind in where.kind.unique().tolist():
        of_kind = where.kind == kind
        for channel in where.node_roles[of_kind].any(0).nonzero().flatten().tolist():
            chosen = of_kind & (where.node_roles[:, channel] > 0)
            values = graphs.nodes[..., channel][:, chosen]
            yield len(EDGE_TYPES) + kind, channel, values, torch.ones_like(values[:1], dtype=torch.bool)


def _types(where: Layout) -> Tensor:
    """(node, node) connection types, where what a unit gets from products that it is part of is a self-connection."""
    if where.constant is None:
        return where.edge_type
    part_of = where.constant.any(-1).T
    return torch.where(part_of & (where.edge_type >= 0), _SELF, where.edge_type)


def described(values: Tensor, present: Tensor) -> Tensor:
    """Mean, variance, quantiles (models, column) of the present of some values (models, weight), NaN where none is.

    Quantiles lie on straight lines between order statistics, as numpy's do.
    """
    present = present.expand_as(values)
    count = present.sum(1)
    known = torch.where(present, values, 0.0)
    mean = known.sum(1) / count
    variance = torch.where(present, values - mean[:, None], 0.0).square().sum(1) / count
    ordered = torch.where(present, values, torch.inf).sort(dim=1).values
    last = (count[:, None] - 1).clamp(min=0)
    position = last * torch.tensor(QUANTILES, dtype=values.dtype, device=values.device)
    low = position.floor().long()
    high = torch.minimum(low + 1, last)
    quantiles = torch.lerp(ordered.gather(1, low), ordered.gather(1, high), position - low)
    columns = torch.cat([mean[:, None], variance[:, None], quantiles], dim=1)
    return torch.where(count[:, None] > 0, columns, torch.nan)
