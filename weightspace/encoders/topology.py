"""Where the edges of a batch of graphs are: the same operations on dense fields and on PyG edge lists.

A layer written against `Topology` runs on both. Edge values are called e, node values x; an edge j -> i has target i.
Every connection is present in both directions, so that `reverse` is a permutation of edges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch_geometric.nn.aggr import MaxAggregation, MeanAggregation
from torch_geometric.utils import scatter, to_dense_adj

from weightspace.encoders.pooling import class_means


class Topology(ABC):
    """Operations between edge values and node values of a batch of graphs."""

    @abstractmethod
    def reverse(self, e: Tensor) -> Tensor:
        """Values of the opposite edges."""

    @abstractmethod
    def from_targets(self, x: Tensor) -> Tensor:
        """Each edge's target value (broadcastable against edge values)."""

    @abstractmethod
    def from_sources(self, x: Tensor) -> Tensor:
        """Each edge's source value (broadcastable against edge values)."""

    @abstractmethod
    def silence(self, e: Tensor) -> Tensor:
        """Edge values with absent edges so far below 0 that a relu makes them exactly 0."""

    @abstractmethod
    def mean(self, e: Tensor) -> Tensor:
        """Mean over the edges into each node."""

    @abstractmethod
    def maximum(self, e: Tensor) -> Tensor:
        """Maximum over the edges into each node."""

    @abstractmethod
    def total(self, e: Tensor, sources: Tensor) -> Tensor:
        """Sum over the edges into each node from nodes where `sources` (0 or 1 per node) is 1."""

    @abstractmethod
    def diagonal(self, e: Tensor) -> Tensor:
        """Each node's self-loop value, 0 where it has none."""

    @abstractmethod
    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Matrix product of two edge fields, channel by channel: sum over nodes k of a[i, k] b[k, j] / sqrt(nodes)."""

    @abstractmethod
    def pool_edges(self, e: Tensor, classes: Tensor) -> Tensor:
        """Per graph, mean edge values (models, class * channel) by class; `classes` is one-hot per edge, 0 if empty."""

    @abstractmethod
    def pool_nodes(self, x: Tensor, classes: Tensor) -> Tensor:
        """Per graph, mean node values (models, class * channel) by class; `classes` is one-hot per node, 0 if empty."""

    @abstractmethod
    def to_nodes(self, g: Tensor) -> Tensor:
        """Each node's graph value (broadcastable against node values)."""


class Dense(Topology):
    """Edge values (models, node, node, channel) as [target, source], node values (models, node, channel).

    `present` (models or 1, node, node) is 1 where an edge is.
    """

    def __init__(self, present: Tensor) -> None:
        self.present = present
        self.isolated = present.sum(2)[..., None] == 0
        self.absent = (present[..., None] - 1) * 1e9
        self.degree = present.sum(2)[..., None].clamp(min=1)

    def reverse(self, e: Tensor) -> Tensor:
        return e.transpose(1, 2)

    def from_targets(self, x: Tensor) -> Tensor:
        return x[:, :, None]

    def from_sources(self, x: Tensor) -> Tensor:
        return x[:, None]

    def silence(self, e: Tensor) -> Tensor:
        return e + self.absent

    def mean(self, e: Tensor) -> Tensor:
        return e.sum(2) / self.degree

    def maximum(self, e: Tensor) -> Tensor:
        return torch.where(self.isolated, 0.0, (e + self.absent).amax(2))

    def total(self, e: Tensor, sources: Tensor) -> Tensor:
        return torch.einsum("mijc,mj->mic", e, sources.expand(e.shape[0], -1))

    def diagonal(self, e: Tensor) -> Tensor:
        return e.diagonal(dim1=1, dim2=2).mT

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        scaled = a.permute(0, 3, 1, 2) / a.shape[1] ** 0.5
        return torch.matmul(scaled, b.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def pool_edges(self, e: Tensor, classes: Tensor) -> Tensor:
        pooled = self.pool_nodes(e.flatten(1, 2), classes.flatten(0, 1)).unflatten(1, (classes.shape[-1], -1))
        over_present: Tensor = pooled * self.declared_per_edge(classes)[..., None]
        return over_present.flatten(1)

    def declared_per_edge(self, classes: Tensor) -> Tensor:
        """Declared edges per edge that is there (models or 1, class): above 1 where masks leave edges out."""
        there = torch.einsum("mij,ijc->mc", self.present, classes)
        ratio: Tensor = classes.sum((0, 1)).clamp(min=1) / there.clamp(min=1)
        return ratio

    def pool_nodes(self, x: Tensor, classes: Tensor) -> Tensor:
        return class_means(x, classes)

    def to_nodes(self, g: Tensor) -> Tensor:
        return g[:, None]


class Sparse(Topology):
    """Edge values (edge, channel) along `edge_index` (2, edge), node values (node, channel), `graph` (node,)."""

    def __init__(self, edge_index: Tensor, graph: Tensor) -> None:
        self.source, self.target = edge_index
        self.graph, self.size, self.graphs = graph, graph.shape[0], int(graph.max()) + 1
        # Sorting by (source, target) and by (target, source) lines every edge up with its opposite.
        forward = torch.argsort(self.source * self.size + self.target)
        backward = torch.argsort(self.target * self.size + self.source)
        self.opposite = torch.empty_like(forward)
        self.opposite[forward] = backward
        self._mean, self._max = MeanAggregation(), MaxAggregation()
        first = scatter(torch.arange(self.size, device=graph.device), graph, reduce="min")
        self.place = torch.arange(self.size, device=graph.device) - first[graph]

    def reverse(self, e: Tensor) -> Tensor:
        return e[self.opposite]

    def from_targets(self, x: Tensor) -> Tensor:
        return x[self.target]

    def from_sources(self, x: Tensor) -> Tensor:
        return x[self.source]

    def silence(self, e: Tensor) -> Tensor:
        return e

    def mean(self, e: Tensor) -> Tensor:
        means: Tensor = self._mean(e, self.target, dim_size=self.size)
        return means

    def maximum(self, e: Tensor) -> Tensor:
        maxima: Tensor = self._max(e, self.target, dim_size=self.size)
        return maxima

    def total(self, e: Tensor, sources: Tensor) -> Tensor:
        sums: Tensor = scatter(e * sources[self.source][:, None], self.target, dim_size=self.size)
        return sums

    def diagonal(self, e: Tensor) -> Tensor:
        loop = (self.source == self.target).to(e.dtype)[:, None]
        loops: Tensor = scatter(e * loop, self.target, dim_size=self.size)
        return loops

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        index = torch.stack([self.target, self.source])
        dense_a, dense_b = (to_dense_adj(index, self.graph, edge_attr=e) for e in (a, b))
        nodes = torch.bincount(self.graph).to(a.dtype)
        product = torch.einsum("gikc,gkjc->gijc", dense_a, dense_b) / nodes.sqrt()[:, None, None, None]
        return product[self.graph[self.target], self.place[self.target], self.place[self.source]]

    def pool_edges(self, e: Tensor, classes: Tensor) -> Tensor:
        return self._pool(e, classes, self.graph[self.target])

    def pool_nodes(self, x: Tensor, classes: Tensor) -> Tensor:
        return self._pool(x, classes, self.graph)

    def _pool(self, values: Tensor, classes: Tensor, graph: Tensor) -> Tensor:
        total = scatter(classes[:, :, None] * values[:, None], graph, dim_size=self.graphs)
        count = scatter(classes, graph, dim_size=self.graphs).clamp(min=1)
        means: Tensor = total / count[:, :, None]
        return means.flatten(1)

    def to_nodes(self, g: Tensor) -> Tensor:
        return g[self.graph]
