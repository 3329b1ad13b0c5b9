"""Weights of graphs, divided by how large such weights are in the training models."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS
from weightspace.graph import CHANNELS, EDGE_TYPES, DenseGraphs


class WeightScales(nn.Module):
    """Root mean squares of training weights by (connection type, channel) and (node kind, channel).

    Weights that no training model has are left as they are, and so are connections of weight 1 by declaration.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edge_scale", torch.ones(len(EDGE_TYPES), CHANNELS))
        self.register_buffer("node_scale", torch.ones(len(NODE_KINDS), CHANNELS))
        self._sums: list[Tensor] | None = None

    edge_scale: Tensor
    node_scale: Tensor

    def add(self, graphs: DenseGraphs) -> None:
        """Take the weights of training models into account."""
        where = graphs.layout
        free = 1.0 if where.constant is None else 1 - where.constant
        present = (graphs.present * free).expand_as(graphs.edges).double()
        roles = where.node_roles.expand_as(graphs.nodes).double()
        parts = [(where.edge_type.clamp(min=0).flatten(), (graphs.edges * free).double().square().sum(0).flatten(0, 1))]
        parts += [(parts[0][0], present.sum(0).flatten(0, 1))]
        parts += [(where.kind, graphs.nodes.double().square().sum(0)), (where.kind, roles.sum(0))]
        if self._sums is None:
            scales = (self.edge_scale, self.edge_scale, self.node_scale, self.node_scale)
            self._sums = [torch.zeros_like(scale, dtype=torch.float64) for scale in scales]
        for total, (index, values) in zip(self._sums, parts, strict=True):
            total[:, : values.shape[-1]].index_add_(0, index, values)

    def settle(self) -> None:
        """Set the scales from all that was added, if anything was."""
        if self._sums is None:
            return
        for scale, square, count in ((self.edge_scale, *self._sums[:2]), (self.node_scale, *self._sums[2:])):
            rms = torch.sqrt(square / count.clamp(min=1))
            scale.copy_(torch.where(rms > 0, rms, 1.0))
        self._sums = None

    def forward(self, graphs: DenseGraphs) -> DenseGraphs:
        """The same graphs with standardised weights, in the dtype of the module."""
        where, used, dtype = graphs.layout, graphs.edges.shape[-1], self.edge_scale.dtype
        scale = self.edge_scale[where.edge_type, :used]
        if where.constant is not None:
            scale = torch.where(where.constant > 0, 1.0, scale)
        edges = (graphs.edges / scale).to(dtype)
        nodes = (graphs.nodes / self.node_scale[where.kind, :used]).to(dtype)
        return replace(graphs, edges=edges, nodes=nodes, present=graphs.present.to(dtype))
