"""Products of edge fields as matrices, channel by channel: traces, diagonals and rows of powers of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.fields import Fields, Pair
from weightspace.encoders.graph_encoder import Edges, FieldEncoder, Invariants
from weightspace.encoders.lifts import EdgeLift, NodeLift
from weightspace.encoders.pooling import PooledScale, class_means, one_hot_kinds, read_out
from weightspace.encoders.scales import FieldScales
from weightspace.families import Family
from weightspace.graph import CHANNELS
from weightspace.store import Stack

PER_STACK, PER_FAMILY = 16, 256
"""Training models, of each stack and of each family and size, from which the scales of invariants are set."""


class MatrixPower(FieldEncoder):
    """Products of all weights as matrices, invariant to permutations of hidden units and factors.

    All nodes of a model make one square field F (channel, node, node): weights and their transposes, mixed to channels
    by connection type. Each layer multiplies two mixtures of it, F <- F A + (F B)(F C) D, so that L layers hold
    polynomials of degree 2^L in the weights and their transposes: trace(W^k), Gram matrices, W_ho W_hh^k W_ih. Fields
    are divided by their root mean square singular value, whose logarithm is kept. Nodes read the diagonal, the means
    and root mean squares of rows and columns of each product beside their biases; pooled by node kind: diagonals as
    they are (which makes traces), means and mean squares of node states. The head reads these invariants in units of
    their spread over training models.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        edge_dim: int = 16,
        product_dim: int = 16,
        node_dim: int = 64,
        num_layers: int = 4,
        dropout: float = 0.0,
        max_layers: int = 8,
        max_ends: int = 256,
        summaries: bool = False,
    ) -> None:
        sizes = {"edge_dim": edge_dim, "product_dim": product_dim, "node_dim": node_dim, "num_layers": num_layers}
        super().__init__(embedding_dim, sizes, max_layers, max_ends, summaries)
        self.scales = FieldScales()
        self.edges = EdgeLift(edge_dim, max_ends, constant=False)
        self.transposed = nn.Parameter(torch.randn(edge_dim, edge_dim) / edge_dim**0.5)
        self.loop = nn.Parameter(torch.randn(CHANNELS, edge_dim))
        self.nodes = NodeLift(node_dim, max_layers, max_ends)
        self.layers = nn.ModuleList(Product(edge_dim, product_dim) for _ in range(num_layers))
        stats = 5 * (edge_dim + num_layers * product_dim)
        self.hear = nn.Sequential(nn.LayerNorm(node_dim + stats), nn.Linear(node_dim + stats, 2 * node_dim), nn.SiLU())
        self.node = nn.Linear(2 * node_dim, node_dim)
        self.edge_dim, self.traced = edge_dim, edge_dim + num_layers * product_dim
        pooled = len(NODE_KINDS) * (self.traced + 2 * node_dim) + self.traced
        self.level = PooledScale(pooled)
        self.head = read_out(self.read_width(pooled), 2 * embedding_dim, embedding_dim, dropout=dropout)

    @torch.no_grad()
    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Scales of weights over the training models, and of invariants over some of each family and size."""
        some: list[Stack] = []
        super().fit_standardisation(_keeping(some, stacks, self.level.mean.dtype))
        if some:
            self.level.fit(torch.cat([super(MatrixPower, self).pooled(stack) for stack in some]))

    def pooled(self, stack: Stack) -> Tensor:
        """Scaled invariants (models, width) of the models of a stack."""
        scaled: Tensor = self.level(super().pooled(stack))
        return scaled

    def over(self, fields: Fields) -> Invariants:
        """The invariants of models of one declaration."""

        def invariants(chunk: Fields, edges: Edges, nodes: dict[str, Tensor]) -> Tensor:
            return self._pooled(chunk, self._field(chunk, edges[0]), torch.cat(list(nodes.values()), dim=1))

        return invariants

    def _field(self, fields: Fields, edges: dict[Pair, Tensor]) -> Tensor:
        """Weights of all connections in both directions, (models, channel, node, node)."""
        for axis, part in fields.loops.items():
            values = (part.values / self.scales.of_loops(part)) @ self.loop[part.channels]
            loops = torch.diag_embed(values.mT).permute(0, 2, 3, 1)
            edges[axis, axis] = edges[axis, axis] + loops if (axis, axis) in edges else loops
        f = _joined(fields, {pair: e.permute(0, 3, 1, 2) for pair, e in edges.items()})
        return f + _mixed(f, self.transposed).transpose(2, 3)

    def _pooled(self, fields: Fields, f: Tensor, x: Tensor) -> Tensor:
        """Invariants (models, pooled) of the field and its products."""
        f, size = _scaled(f)
        heard, diagonals, sizes = [x, *_node_values(f)], [f.diagonal(dim1=2, dim2=3)], [size]
        for layer in self.layers:
            f, product, size = layer(f)
            heard.extend(_node_values(product))
            diagonals.append(product.diagonal(dim1=2, dim2=3))
            sizes.append(size)
        h = x + self.node(self.hear(torch.cat(heard, dim=-1)))
        nodes = torch.cat([torch.cat(diagonals, dim=1).mT, silu(h), h.square()], dim=-1)
        return torch.cat([_means_by_kind(fields, nodes), *sizes], dim=-1)


class Product(nn.Module):
    """One product of two mixtures of a field's channels: field (models, channel, node, node) -> next field, product
    (models, product channel, node, node) and the logarithms of its size (models, product channel).
    """

    def __init__(self, edge_dim: int, product_dim: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(edge_dim, product_dim) / edge_dim**0.5)
        self.second = nn.Parameter(torch.randn(edge_dim, product_dim) / edge_dim**0.5)
        self.keep = nn.Parameter(torch.randn(edge_dim, edge_dim) / (2 * edge_dim) ** 0.5)
        self.add = nn.Parameter(torch.randn(product_dim, edge_dim) / (2 * product_dim) ** 0.5)

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        product, size = _scaled(_mixed(f, self.first) @ _mixed(f, self.second))
        return _mixed(f, self.keep) + _mixed(product, self.add), product, size


def _keeping(some: list[Stack], stacks: Iterable[Stack], dtype: torch.dtype) -> Iterator[Stack]:
    """The same stacks, the first `PER_STACK` models of each put into `some`, in `dtype`, up to `PER_FAMILY`."""
    counts: Counter[Family] = Counter()
    for stack in stacks:
        number = min(PER_STACK, len(stack), PER_FAMILY - counts[stack.family])
        if number > 0:
            counts[stack.family] += number
            params = {name: values[:number].to(dtype) for name, values in stack.params.items()}
            some.append(replace(stack, params=params, rows=stack.rows[:number]))
        yield stack


def _mixed(f: Tensor, weight: Tensor) -> Tensor:
    """Channels (models, channel, node, node) mixed by weights (from, to)."""
    mixed: Tensor = (weight.T @ f.flatten(2)).unflatten(2, f.shape[2:])
    return mixed


def _scaled(f: Tensor) -> tuple[Tensor, Tensor]:
    """A field over the root mean square of its singular values, and the logarithm of that, by channel."""
    size = torch.sqrt(f.square().sum((2, 3)) / f.shape[2] + 1e-12)
    return f / size[..., None, None], size.log()


def _node_values(f: Tensor) -> list[Tensor]:
    """Diagonal, sums and root mean squares of rows and columns of a field: five times (models, node, channel)."""
    squares = f.square()
    values = [f.diagonal(dim1=2, dim2=3), f.sum(3) / f.shape[2] ** 0.5, f.sum(2) / f.shape[2] ** 0.5]
    values += [torch.sqrt(squares.sum(axis) + 1e-12) for axis in (3, 2)]
    return [value.mT for value in values]


def _joined(fields: Fields, blocks: dict[Pair, Tensor]) -> Tensor:
    """Blocks (models, channel, to, from) as one field (models, channel, node, node), 0 where there is none."""
    channels = next(iter(blocks.values())).shape[1]
    rows = []
    for to, targets in fields.sets.items():
        row = []
        for source, sources in fields.sets.items():
            absent = fields.like.new_zeros(fields.models, channels, targets.size, sources.size)
            row.append(blocks.get((to, source), absent))
        rows.append(torch.cat(row, dim=3))
    return torch.cat(rows, dim=2)


def _means_by_kind(fields: Fields, nodes: Tensor) -> Tensor:
    """Mean node values (models, kind * channel) by node kind, 0 where there is no node of a kind."""
    kinds = torch.cat([nodes.new_full((nodes_of.size,), nodes_of.kind) for nodes_of in fields.sets.values()])
    return class_means(nodes, one_hot_kinds(kinds.long(), nodes))
