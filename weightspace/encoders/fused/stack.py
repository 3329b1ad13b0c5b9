"""One call of the C of message passing: what it is given, and the data of a stack of models."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.rollout.native.engine.compiler import library
from weightspace.rollout.native.engine.job import INT, POINTER
from weightspace.rollout.native.engine.threads import at_once

CHUNK = 8
"""Models whose gradients are summed in one room; as in stack.h."""
_SOURCE = Path(__file__).with_name("stack.c")
_SIZES = ("models", "nodes", "channels", "layers", "width", "node_classes", "edge_classes", "real_inputs")
_SHARED = ("fixed_edges", "absent", "degree")
"""What may be the same for all models: a stride of 0."""
_KINDS = ("hidden", "input", "factor")
_KEPT = ("kept_edges", "kept_states", "kept_heard", "kept_bits")
_ARRAYS = (
    *("edges", "values", "fixed_edges", "fixed_nodes", "absent", "degree", *_KINDS, "node_class", "edge_class"),
    *("node_shares", "edge_shares", "real", "weights", "pooled_nodes", "pooled_edges", *_KEPT),
    *("pooled_nodes_gradient", "pooled_edges_gradient"),
    *("weights_gradient", "fixed_edges_gradient", "fixed_nodes_gradient"),
)


class _Stack(ctypes.Structure):
    """The `Stack` of stack.h, field by field."""

    _fields_ = [
        *((name, INT) for name in _SIZES),
        *((f"{name}_stride", INT) for name in _SHARED),
        *((name, POINTER) for name in _ARRAYS),
    ]


@dataclass(frozen=True)
class Widths:
    """Widths of an encoder's edge states, node states and products, and its number of rounds."""

    edge: int
    node: int
    product: int
    layers: int

    @property
    def padded(self) -> Widths:
        """The widths that C works with: whole vectors, with zeros beyond what is real."""
        edge, node = (-(-size // 16) * 16 for size in (self.edge, self.node))
        product = 8 if self.product <= 8 else -(-self.product // 16) * 16
        return Widths(edge, node, product, self.layers)

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
    """What models have in common whatever their weights, but for masks, which may differ by model."""

    absent: Tensor
    """(models or 1, node, node): 0 where an edge is, else far below 0."""
    degree: Tensor
    """(models or 1, node): number of edges into each node, at least 1."""
    of_kind: Mapping[str, Tensor]
    """Kind of node -> (node,), 1 where a node is of that kind."""
    classes: tuple[Tensor, Tensor]
    """Classes by which nodes (node,) and edges (node, node) are pooled, -1: none."""
    class_sizes: tuple[int, int]
    """How many classes of nodes and of edges there are."""


def compiled(widths: Widths) -> ctypes.CDLL:
    """The library for the padded widths of edges and products; NoNative if it cannot be had."""
    return _compiled(widths.padded.edge, widths.padded.product)


@functools.cache
def _compiled(edge: int, product: int) -> ctypes.CDLL:
    compiled = library(str(_SOURCE), f"EDGE={edge}", f"PRODUCT={product}")
    compiled.room_size.restype = INT
    return compiled


class Call:
    """One call of C: its data, and the tensors that must live as long."""

    def __init__(self, widths: Widths, around: Surroundings, data: Sequence[Tensor]) -> None:
        edges, values, fixed_edges, fixed_nodes, packed = data
        models, nodes, channels = values.shape
        self.library, self.tensors = compiled(widths), list[Tensor]()
        padded, sizes = widths.padded, around.class_sizes
        self.stack = _Stack(models, nodes, channels, widths.layers, padded.node, *sizes, widths.inputs)
        self.widths = padded
        for name, tensor in (("edges", edges), ("values", values), ("fixed_nodes", fixed_nodes), ("weights", packed)):
            self.take(name, tensor)
        for name, tensor in zip(_SHARED, (fixed_edges, around.absent, around.degree), strict=True):
            self.take(name, tensor)
            setattr(self.stack, f"{name}_stride", tensor[0].numel() if tensor.shape[0] > 1 else 0)
        for name in _KINDS:
            self.take(name, around.of_kind[name])
        for name, classes, size in zip(("node", "edge"), around.classes, sizes, strict=True):
            counts = torch.bincount(classes.flatten() + 1, minlength=size + 1)[1:]
            self.take(f"{name}_class", classes.int())
            self.take(f"{name}_shares", 1 / counts.clamp(min=1).to(packed.dtype))
        self.take("real", widths.real())

    @property
    def chunks(self) -> int:
        """Number of rooms in which gradients are summed."""
        chunks: int = -(-self.stack.models // CHUNK)
        return chunks

    def take(self, name: str, tensor: Tensor) -> None:
        """Hand a tensor to C: dense, and beginning where a vector may."""
        assert tensor.dtype in (torch.float32, torch.int32), f"{name} is {tensor.dtype}"
        dense = tensor.detach().contiguous()
        dense = dense.clone() if dense.data_ptr() % 64 else dense
        self.tensors.append(dense)
        setattr(self.stack, name, dense.data_ptr())

    def kept_sizes(self) -> tuple[int, ...]:
        """How many numbers of 32 bits are kept of edges, of nodes, of what nodes heard, and of signs, a bit each."""
        stack, edge = self.stack, self.widths.edge
        rounds, pairs = stack.models * stack.layers, stack.nodes**2
        sizes = ((rounds + stack.models) * pairs * edge, (rounds + stack.models) * stack.nodes * stack.width)
        # A vector has 4 numbers at least, and 16 bits for their signs.
        return *sizes, rounds * stack.nodes * 4 * edge, rounds * pairs * edge // 8

    def take_kept(self, kept: Tensor) -> None:
        """Hand over the room for what is kept for the way back."""
        for name, part in zip(_KEPT, kept.split(list(self.kept_sizes())), strict=True):
            self.take(name, part)

    def run(self, function: str) -> None:
        """Do it, shared out among threads by chunks of models; results do not depend on how many there are."""
        work = partial(self._chunks, getattr(self.library, function), INT(0))
        at_once([work] * max(1, min(torch.get_num_threads(), self.chunks)))

    def _chunks(self, function: Any, taken: Any) -> None:
        size = self.library.room_size(ctypes.byref(self.stack))
        room = torch.empty(size + 16)
        start = POINTER(-(-room.data_ptr() // 64) * 64)
        function(ctypes.byref(self.stack), ctypes.byref(taken), start)
