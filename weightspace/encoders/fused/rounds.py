"""The rounds of message passing of one stack as a differentiable function, computed in C."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightspace.encoders.fused.lent import lent
from weightspace.encoders.fused.stack import Call, Surroundings, Widths


def rounds(
    widths: Widths, around: Surroundings, weights: tuple[Tensor, Tensor], fixed: tuple[Tensor, Tensor], packed: Tensor
) -> Tensor:
    """Pooled nodes and edges (models, 2 * node class * node_dim + 2 * edge class * edge_dim) after all rounds.

    `weights` are standardised, on edges (models, node, node, channel) and on nodes (models, node, channel); `fixed` is
    what first states have beside them, of edges (models or 1, node, node, edge_dim) and of nodes (node, node_dim);
    `packed` are the encoder's weights, see packing.py. Pooled are means of values and of their squares, by class.
    """
    padded = widths.padded
    fixed_edges, fixed_nodes = filled(fixed[0], padded.edge), filled(fixed[1], padded.node)
    pooled = _Rounds.apply(widths, around, *weights, fixed_edges, fixed_nodes, packed)  # type: ignore[no-untyped-call]
    nodes, edges = pooled
    return torch.cat([nodes[..., : widths.node].flatten(1), edges[..., : widths.edge].flatten(1)], dim=1)


def filled(values: Tensor, size: int) -> Tensor:
    """The same numbers with zeros behind them along the last axis."""
    return values if values.shape[-1] == size else F.pad(values, (0, size - values.shape[-1]))


class _Rounds(torch.autograd.Function):
    """States are kept for the way back; what follows from the states of one round is computed again there."""

    @staticmethod
    def forward(ctx: Any, widths: Widths, around: Surroundings, *data: Tensor) -> tuple[Tensor, Tensor]:
        call = Call(widths, around, data)
        ctx.widths, ctx.around = widths, around
        models, like = data[0].shape[0], data[-1]
        nodes = like.new_empty(models, around.class_sizes[0], 2, widths.padded.node)
        edges = like.new_empty(models, around.class_sizes[1], 2, widths.padded.edge)
        call.take("pooled_nodes", nodes)
        call.take("pooled_edges", edges)
        kept = []
        if any(ctx.needs_input_grad):
            kept.append(lent(sum(call.kept_sizes())))
            call.take_kept(kept[0])
        call.run("run_forward")
        ctx.save_for_backward(*data, *kept)
        return nodes, edges

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, nodes: Tensor, edges: Tensor) -> tuple[Tensor | None, ...]:
        *data, kept = ctx.saved_tensors
        call = Call(ctx.widths, ctx.around, data)
        call.take_kept(kept)
        call.take("pooled_nodes_gradient", nodes)
        call.take("pooled_edges_gradient", edges)
        _, _, fixed_edges, fixed_nodes, packed = data
        parts = []
        by_model = fixed_edges.shape[0] > 1
        for name, tensor in (("fixed_edges", fixed_edges), ("fixed_nodes", fixed_nodes), ("weights", packed)):
            shape = tensor.shape if name != "fixed_edges" or by_model else tensor.shape[1:]
            rooms = () if by_model and name == "fixed_edges" else (call.chunks,)
            parts.append(tensor.new_empty(*rooms, *shape))
            call.take(f"{name}_gradient", parts[-1])
        call.run("run_backward")
        of_edges = parts[0] if by_model else _in_order(parts[0])[None]
        return None, None, None, None, of_edges, _in_order(parts[1]), _in_order(parts[2])


def _in_order(parts: Tensor) -> Tensor:
    """The sum over the first axis, one after another, whatever the number of threads."""
    total = parts.new_zeros(parts.shape[1:])
    for part in parts:
        total += part
    return total
