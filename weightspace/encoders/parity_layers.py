"""Layers on features of several parities: maps within a parity, products that add parities, odd nonlinearities.

Node features are (parity, models, node, channel), edge features (pair of parities, models, node, node, channel) as
[target, source], where (target parity, source parity) is one number. Number 0 is even in everything.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

RELATIVE_FLOOR = 0.2
"""A centred feature is divided by at least this share of its size, or rounding would be blown up."""


@lru_cache(maxsize=16)
def kinds_of(num: int) -> Tensor:
    """Kind (parity,) of each of `num` parities of nodes: 0 even, 1 any other, as gauges have no order."""
    with torch.inference_mode(False):
        return (torch.arange(num) > 0).long()


@lru_cache(maxsize=16)
def pair_kinds_of(num: int) -> Tensor:
    """Kind (pair of parities,) of edge features: 2 * kind of the target's parity + kind of the source's."""
    with torch.inference_mode(False):
        return (2 * kinds_of(num)[:, None] + kinds_of(num)).flatten()


@lru_cache(maxsize=16)
def sums_of(num: int) -> Tensor:
    """Sums (parity, parity) of parities; a + b = c also says b = a + c."""
    with torch.inference_mode(False):
        numbers = torch.arange(num)
        return numbers[:, None] ^ numbers


class ParityLinear(nn.Module):
    """A linear map of channels, W[kind] x, with weights for each kind of parity, and a bias on even features alone.

    Shapes: (parity, ..., inputs), kinds (parity,) -> (parity, ..., outputs).
    """

    def __init__(self, kinds: int, inputs: int, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter((2 * torch.rand(kinds, inputs, outputs) - 1) * (3 / inputs) ** 0.5)
        self.bias = nn.Parameter(torch.full((outputs,), bias))

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        """Mapped features."""
        mapped = torch.bmm(x.flatten(1, -2), self.weight[kinds]).reshape(*x.shape[:-1], -1)
        mapped[0] += self.bias
        return mapped


class FittedScale(nn.Module):
    """Features divided by their root mean square over the first training models, by kind and channel, as a buffer.

    Features that are 0 by their parity do not count. A `centred` one is its deviation from the mean over the standard
    deviation. While it is `listening`, the scale takes what passes into account; `settle` then sets it.

    Shapes: (parity, ..., channel), kinds (parity,) -> the same.
    """

    def __init__(self, kinds: int, width: int, centred: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(kinds, width))
        self.register_buffer("scale", torch.ones(kinds, width))
        self.centred, self.listening = centred, False
        self._sums: Tensor | None = None

    mean: Tensor
    scale: Tensor

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        """Scaled features."""
        if self.listening:
            self._add(x.detach().flatten(1, -2).double(), kinds)
        shape = (len(x), *[1] * (x.dim() - 2), x.shape[-1])
        centred = x - self.mean[kinds].reshape(shape) if self.centred else x
        scaled: Tensor = centred / self.scale[kinds].reshape(shape)
        return scaled

    def _add(self, x: Tensor, kinds: Tensor) -> None:
        moments = torch.stack([(x != 0).sum(1).double(), x.sum(1), x.square().sum(1)])
        if self._sums is None:
            self._sums = moments.new_zeros(3, *self.scale.shape)
        self._sums.index_add_(1, kinds, moments)

    def settle(self) -> None:
        """Set the scale from all that passed since it was listening, if anything did; it then stops."""
        self.listening = False
        if self._sums is None:
            return
        count, total, square = self._sums
        self._sums = None
        count = count.clamp(min=1)
        size = (square / count).sqrt()
        if self.centred:
            self.mean.copy_(total / count)
            deviation = (square / count - (total / count).square()).clamp(min=0).sqrt()
            size = torch.maximum(deviation, RELATIVE_FLOOR * size)
        self.scale.copy_(torch.where(size > 0, size, 1.0))


class ParityActivation(nn.Module):
    """SiLU of even features; of others tanh, an odd function, times a sigmoid of the even feature of the channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        even, odd = x[:1], x[1:]
        gate = torch.sigmoid(self.slope * even + self.offset)
        return torch.cat([nn.functional.silu(even), torch.tanh(odd) * gate])


def by_ends(e: Tensor, num: int) -> Tensor:
    """Edge features with target and source parity apart, (parity, parity, models, node, node, channel)."""
    return e.reshape(num, num, *e.shape[1:])


def reverse(e: Tensor, num: int) -> Tensor:
    """Features of the opposite edges: ends change places, parities with them."""
    return by_ends(e, num).transpose(0, 1).flatten(0, 1).transpose(2, 3)


def node_product(a: Tensor, b: Tensor) -> Tensor:
    """Products of node features: of parity c, the sum over all parities of a[p] b[p + c]."""
    return (a[None] * b[sums_of(len(a)).to(a.device)]).sum(1)


def edge_product(a: Tensor, b: Tensor, num: int) -> Tensor:
    """Matrix products by channel, sum over nodes k and parities q of a[p, q; i, k] b[q, r; k, j] / sqrt(node)."""
    first, second = (by_ends(x, num).permute(2, 5, 0, 3, 1, 4) for x in (a, b))
    models, channels, _, size = first.shape[:4]
    blocks = [x.reshape(models, channels, num * size, num * size) for x in (first, second)]
    product = torch.matmul(blocks[0] / size**0.5, blocks[1])
    return product.reshape(models, channels, num, size, num, size).permute(2, 4, 0, 3, 5, 1).flatten(0, 1)


def outer(targets: Tensor, sources: Tensor) -> Tensor:
    """Edge features that are products of a feature of the target and one of the source."""
    return (targets[:, None, :, :, None] * sources[None, :, :, None]).flatten(0, 1)


def heard(e: Tensor, x: Tensor) -> Tensor:
    """Node features, sum over sources j and their parities q of e[p, q; i, j] x[q; j] / sqrt(node)."""
    sums: Tensor = (by_ends(e, len(x)) * x[None, :, :, None]).sum((1, 4))
    return sums / math.sqrt(x.shape[2])


def loops(e: Tensor, num: int) -> Tensor:
    """Node features of self-loops, whose parity is the sum of those of both ends: of parity c, sum of e[p, p + c]."""
    diagonal = by_ends(e, num).diagonal(dim1=3, dim2=4).movedim(-1, 3)
    numbers = torch.arange(num, device=e.device)
    return diagonal[numbers[:, None], sums_of(num).to(e.device)].sum(0)


class ParityLayer(nn.Module):
    """One round: edges hear their ends, their opposites and their products; nodes hear their edges and self-loops."""

    def __init__(self, edge_dim: int, node_dim: int, product_dim: int) -> None:
        super().__init__()
        self.widths = [edge_dim, product_dim, product_dim]
        self.edge = ParityLinear(4, 2 * edge_dim, sum(self.widths))
        self.product = ParityLinear(4, product_dim, edge_dim)
        self.square = nn.Linear(product_dim, edge_dim, bias=False)
        self.ends = ParityLinear(2, node_dim, 2 * edge_dim, bias=1.0)
        self.edge_scale, self.edge_activation = FittedScale(4, edge_dim), ParityActivation(edge_dim)
        self.message = ParityLinear(2, node_dim, edge_dim, bias=1.0)
        self.heard_scale = FittedScale(2, node_dim + 2 * edge_dim)
        self.node = ParityLinear(2, node_dim + 2 * edge_dim, 3 * node_dim)
        self.node_scale, self.node_activation = FittedScale(2, node_dim), ParityActivation(node_dim)
        self.out = ParityLinear(2, node_dim, node_dim)
        self.context = nn.Linear(node_dim, node_dim, bias=False)

    def forward(self, e: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Next features of edges and nodes."""
        num = len(x)
        kinds, pair_kinds = kinds_of(num).to(x.device), pair_kinds_of(num).to(x.device)
        direct, a, b = self.edge(torch.cat([e, reverse(e, num)], dim=-1), pair_kinds).split(self.widths, dim=-1)
        product, ends = self.product(edge_product(a, b, num), pair_kinds), self.ends(x, kinds).chunk(2, dim=-1)
        update = direct + product + outer(*ends)
        update[0] += self.square((a * b).sum(0))
        e = e + self.edge_activation(self.edge_scale(update, pair_kinds))
        z = torch.cat([x, heard(e, self.message(x, kinds)), loops(e, num)], dim=-1)
        first, second, plain = self.node(self.heard_scale(z, kinds), kinds).chunk(3, dim=-1)
        y = self.node_activation(self.node_scale(plain + node_product(first, second), kinds))
        x = x + self.out(y, kinds)
        x[0] += self.context(x[0].mean(1, keepdim=True))
        return e, x
