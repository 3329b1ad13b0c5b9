"""The rounds of message passing of one stack as a differentiable function, computed in C."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightspace.rollout.native.engine.compiler import library
from weightspace.rollout.native.engine.job import INT, POINTER
from weightspace.rollout.native.engine.threads import at_once

_SOURCE = Path(__file__).with_name("stack.c")
CHUNK = 8
"""Models whose gradients are summed in one room; as in stack.h."""
_SIZES = ("models", "nodes", "channels", "layers", "width", "classes", "real_inputs")
_STRIDES = ("fixed", "absent", "degree")
_ARRAYS = (
    *("edges", "fixed", "absent", "degree", "states", "hidden", "input", "factor", "edge_class", "class_size"),
    *("real", "weights", "pooled", "last", "kept_edges", "kept_states", "kept_heard", "kept_bits"),
    *("pooled_gradient", "last_gradient", "weights_gradient", "fixed_gradient", "states_gradient"),
)


class _Stack(ctypes.Structure):
    """The `Stack` of stack.h, field by field."""

    _fields_ = [
        *((name, INT) for name in _SIZES),
        *((f"{name}_stride", INT) for name in _STRIDES),
        *((name, POINTER) for name in _ARRAYS),
    ]


@dataclass(frozen=True)
class Widths:
    """Widths of an encoder's states, and what they are filled up to with zeros: whole vectors."""

    edge: int
    node: int
    product: int

    @property
    def padded(self) -> Widths:
        """The widths that C works with."""
        edge, node = (-(-size // 16) * 16 for size in (self.edge, self.node))
        return Widths(edge, node, 8 if self.product <= 8 else -(-self.product // 16) * 16)

    @property
    def inputs(self) -> int:
        """How many numbers the nodes' network reads: a node's state and four edge values."""
        return self.node + 4 * self.edge

    def real(self) -> Tensor:
        """1 where an input of the nodes' network is real, (padded inputs,)."""
        padded = self.padded
        parts = [(self.node, padded.node), *[(self.edge, padded.edge)] * 4]
        return torch.cat([(torch.arange(whole) < size).float() for size, whole in parts])


@dataclass(frozen=True)
class Surroundings:
    """What is the same whatever the weights of models are, (models or 1, ...) where masks may differ by model."""

    absent: Tensor
    """(models or 1, node, node): 0 where an edge is, else far below 0."""
    degree: Tensor
    """(models or 1, node): number of edges into each node, at least 1."""
    hidden: Tensor
    """(node,) 1 where a node is hidden; likewise `input` and `factor`."""
    input: Tensor
    factor: Tensor
    edge_class: Tensor
    """(node, node) class by which edges are pooled, -1: none."""
    class_size: Tensor
    """(class,) number of edges of each class, at least 1."""


def compiled(widths: Widths) -> ctypes.CDLL:
    """The library for the padded widths of edges and products; NoNative if it cannot be had."""
    return _compiled(widths.padded.edge, widths.padded.product)


@functools.cache
def _compiled(edge: int, product: int) -> ctypes.CDLL:
    found = library(str(_SOURCE), f"EDGE={edge}", f"PRODUCT={product}")
    found.room_size.restype = INT
    return found


def run(
    widths: Widths, layers: int, around: Surroundings, edges: Tensor, fixed: Tensor, states: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Pooled edges (models, class, 2, edge_dim) and node states (models, node, node_dim) after all rounds.

    `edges` (models, node, node, channel) are standardised weights, `fixed` (models or 1, node, node, padded edge_dim)
    is what first edge states have beside them, `states` (models, node, padded node_dim) are first node states, and
    `weights` those of `packing.packed`. Pooled are means of values and of their squares over the edges of each class.
    """
    pooled, last = _Rounds.apply(widths, layers, around, edges, fixed, states, weights)
    return pooled[..., : widths.edge], last[..., : widths.node]


class _Rounds(torch.autograd.Function):
    """Edge states are kept for the way back; what follows from one round's states is computed again there."""

    @staticmethod
    def forward(
        ctx: Any,
        widths: Widths,
        layers: int,
        around: Surroundings,
        edges: Tensor,
        fixed: Tensor,
        states: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        edge, (models, nodes, width) = widths.padded.edge, states.shape
        call = _Call(widths, layers, around, edges, fixed, states, weights)
        call.take("pooled", states.new_empty(models, around.class_size.shape[0], 2, edge))
        call.take("last", states.new_empty(models, nodes, width))
        ctx.sizes = (widths, layers, around)
        kept = []
        if any(ctx.needs_input_grad):
            field = (nodes, nodes, edge)
            kept = [states.new_empty(models, layers + 1, *field), states.new_empty(models, layers + 1, nodes, width)]
            kept += [states.new_empty(models, layers, nodes, 4 * edge)]
            # One bit an edge value, in numbers of 16 bits for each vector: of at least 4 values.
            kept += [torch.empty(models, layers, *field[:2], edge // 4, dtype=torch.int16)]
            call.take_kept(kept)
        call.run("run_forward")
        ctx.save_for_backward(edges, fixed, states, weights, *kept)
        return call.tensors["pooled"], call.tensors["last"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pooled: Tensor, last: Tensor) -> tuple[Tensor | None, ...]:
        edges, fixed, states, weights, *kept = ctx.saved_tensors
        call = _Call(*ctx.sizes, edges, fixed, states, weights)
        call.take_kept(kept)
        chunks = -(-states.shape[0] // CHUNK)
        call.take("pooled_gradient", pooled)
        call.take("last_gradient", last)
        call.take("weights_gradient", weights.new_empty(chunks, *weights.shape))
        by_model = fixed.shape[0] > 1
        call.take("fixed_gradient", fixed.new_empty(fixed.shape[0] if by_model else chunks, *fixed.shape[1:]))
        call.take("states_gradient", torch.empty_like(states))
        call.run("run_backward")
        of_fixed, of_weights = call.tensors["fixed_gradient"], call.tensors["weights_gradient"]
        of_fixed = of_fixed if by_model else _in_order(of_fixed)[None]
        return None, None, None, None, of_fixed, call.tensors["states_gradient"], _in_order(of_weights)


def _in_order(parts: Tensor) -> Tensor:
    """The sum over the first axis, one after another, whatever the number of threads."""
    total = torch.zeros_like(parts[0]) if len(parts) else parts.new_zeros(parts.shape[1:])
    for part in parts:
        total += part
    return total


class _Call:
    """One call of C: its data, and the tensors that must live as long."""

    def __init__(
        self,
        widths: Widths,
        layers: int,
        around: Surroundings,
        edges: Tensor,
        fixed: Tensor,
        states: Tensor,
        weights: Tensor,
    ) -> None:
        self.library, self.tensors = compiled(widths), dict[str, Tensor]()
        models, nodes, width = states.shape
        sizes = (models, nodes, edges.shape[-1], layers, width, around.class_size.shape[0], widths.inputs)
        self.stack = _Stack(*sizes)
        for name, tensor in (("edges", edges), ("states", states), ("weights", weights), ("real", widths.real())):
            self.take(name, tensor)
        for name, tensor in (("fixed", fixed), ("absent", around.absent), ("degree", around.degree)):
            self.take(name, tensor)
            setattr(self.stack, f"{name}_stride", tensor[0].numel() if tensor.shape[0] > 1 else 0)
        for name in ("hidden", "input", "factor", "class_size"):
            self.take(name, getattr(around, name))
        self.take("edge_class", around.edge_class.int())

    def take(self, name: str, tensor: Tensor) -> None:
        """Hand a tensor to C: dense, and beginning where a vector may."""
        dense = tensor.detach().contiguous()
        dense = dense.clone() if dense.data_ptr() % 64 else dense
        self.tensors[name] = dense
        setattr(self.stack, name, dense.data_ptr())

    def take_kept(self, kept: list[Tensor]) -> None:
        """Hand over the room for what is kept for the way back."""
        for name, tensor in zip(("edges", "states", "heard", "bits"), kept, strict=True):
            self.take(f"kept_{name}", tensor)

    def run(self, function: str) -> None:
        """Do it, shared out among threads by chunks of models; results do not depend on how many there are."""
        chunks = -(-self.stack.models // CHUNK)
        work = partial(self._chunks, getattr(self.library, function), INT(0))
        at_once([work] * max(1, min(torch.get_num_threads(), chunks)))

    def _chunks(self, function: Any, taken: Any) -> None:
        size = self.library.room_size(ctypes.byref(self.stack))
        room = torch.empty(size + 16)
        start = POINTER(-(-room.data_ptr() // 64) * 64)
        function(ctypes.byref(self.stack), ctypes.byref(taken), start)
