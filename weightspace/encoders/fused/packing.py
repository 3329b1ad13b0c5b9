"""Weights of an encoder's rounds as one row of numbers, matrices as (from, to), filled up to whole vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.encoders.fused.rounds import filled
from weightspace.encoders.fused.stack import Widths
from weightspace.encoders.layer import Layer


def packed(widths: Widths, first: Sequence[Tensor], layers: Iterable[nn.Module]) -> Tensor:
    """All weights in the order of stack.h: of first states (channel, edge_dim or node_dim), then layer by layer."""
    padded = widths.padded
    parts = [filled(weight, size) for weight, size in zip(first, (padded.edge, padded.edge, padded.node), strict=True)]
    for layer in layers:
        assert isinstance(layer, Layer)
        parts += _of_layer(layer, widths)
    return torch.cat([part.flatten() for part in parts])


def _of_layer(layer: Layer, widths: Widths) -> list[Tensor]:
    edge, node, product = widths.padded.edge, widths.padded.node, widths.padded.product
    norm, first, _, second = layer.node
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    mix = zip(layer.edge.weight.split(layer.widths), (edge, edge, product, product), strict=True)
    ends = [*layer.source.weight.chunk(2), layer.target.weight]
    biases = [*layer.source.bias.chunk(2), layer.product.bias]
    inputs = [widths.node, *[widths.edge] * 4]
    whole = [node, *[edge] * 4]

    def of_inputs(values: Tensor) -> Tensor:
        parts = zip(values.split(inputs, dim=-1), whole, strict=True)
        return torch.cat([filled(part, size) for part, size in parts], dim=-1)

    return [
        torch.cat([_filled(weight, size, edge) for weight, size in mix]).T,
        _filled(layer.product.weight, edge, product).T,
        torch.cat([_filled(weight, edge, node) for weight in ends]).T,
        torch.cat([filled(bias, edge) for bias in biases]),
        _filled(layer.context.weight, node, node).T,
        of_inputs(norm.weight),
        of_inputs(norm.bias),
        _filled(of_inputs(first.weight), node, node + 4 * edge).T,
        filled(first.bias, node),
        _filled(second.weight, node, node).T,
        filled(second.bias, node),
    ]


def _filled(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix with zeros below and to the right of it."""
    missing = (0, columns - matrix.shape[1], 0, rows - matrix.shape[0])
    return F.pad(matrix, missing) if any(missing) else matrix
