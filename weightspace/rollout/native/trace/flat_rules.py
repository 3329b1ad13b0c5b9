"""The flat operations that each tensor operation on params becomes; see `rules` for how arguments are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.rollout.native.trace.flat import Gather, Load, Scatter, Step
from weightspace.rollout.native.trace.program import Builder, Map, Ref, Untraceable

aten = torch.ops.aten
LARGEST = 1 << 20
"""Largest number of elements of a value; larger ones are left to torch."""


@dataclass(frozen=True)
class Value:
    """A tensor of a graph: its numbers, in a program or (`constant`) already known, and its shape."""

    shape: tuple[int, ...]
    ref: Ref | None = None
    constant: Tensor | None = None


class Writer:
    """Writer of flat operations."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.builder, self.operations = Builder(), list[Step]()
        self.values: dict[fx.Node, Any] = {}

    def value(self, source: Any) -> Value:
        """The value of a node or a number."""
        if isinstance(source, fx.Node):
            value = self.values[source]
            if not isinstance(value, Value):
                raise Untraceable(f"{source} is several tensors")
            return value
        return Value((), constant=torch.tensor(source, dtype=self.dtype))

    def tile(self, value: Value) -> Ref:
        """Reference to the numbers of a value, loaded now if they are constant."""
        if value.ref is not None:
            return value.ref
        assert value.constant is not None
        numbers = tuple(float(number) for number in value.constant.flatten().tolist())
        out = self.builder.value(len(numbers))
        self.operations.append(Load(out, numbers))
        return out

    def gather(self, value: Value, places: Tensor) -> Value:
        """The elements of a value at `places`, in their shape."""
        source, table = self.tile(value), tuple(places.flatten().tolist())
        if len(table) > LARGEST or not table:
            raise Untraceable(f"a tensor of shape {tuple(places.shape)} in what it computes from params")
        if table == tuple(range(source.rows)):
            return Value(tuple(places.shape), source)
        out = self.builder.value(len(table))
        self.operations.append(Gather(out, source, table))
        return Value(tuple(places.shape), out)

    def scatter(self, value: Value, places: Tensor, shape: Sequence[int]) -> Value:
        """Each element of a value added to the element of a tensor of this shape that `places` names."""
        out = self.builder.value(math.prod(shape))
        self.operations.append(Scatter(out, self.tile(value), tuple(places.flatten().tolist())))
        return Value(tuple(shape), out)

    def broadcast(self, value: Value, shape: Sequence[int]) -> Ref:
        """The numbers of a value repeated to a larger shape."""
        if value.ref is None:
            assert value.constant is not None
            return self.tile(Value(tuple(shape), constant=value.constant.expand(shape)))
        places = torch.arange(math.prod(value.shape)).view(value.shape).expand(tuple(shape))
        return self.tile(self.gather(value, places))

    def map(self, function: str, shape: Sequence[int], args: Sequence[Ref], constants: tuple[float, ...] = ()) -> Value:
        """A map of values that have one shape."""
        out = self.builder.value(math.prod(shape))
        self.operations.append(Map(out, function, tuple(args), constants))
        return Value(tuple(shape), out)

    def both(self, function: str, one: Value, other: Value) -> Value:
        """A map of two values, broadcast to one shape."""
        shape = torch.broadcast_shapes(one.shape, other.shape)
        return self.map(function, shape, (self.broadcast(one, shape), self.broadcast(other, shape)))

    def affine(self, value: Value, factor: float, addend: float) -> Value:
        """factor * value + addend."""
        return self.map("affine", value.shape, (self.tile(value),), (factor, addend))


def _of_one(function: str) -> Callable[..., Value]:
    def rule(writer: Writer, self: Any) -> Value:
        value = writer.value(self)
        return writer.map(function, value.shape, (writer.tile(value),))

    return rule


def _of_two(function: str) -> Callable[..., Value]:
    def rule(writer: Writer, self: Any, other: Any) -> Value:
        one, two = writer.value(self), writer.value(other)
        if two.constant is not None and two.constant.numel() == 1 and len(two.shape) <= len(one.shape):
            number = float(two.constant)
            numbers = {"add": (1.0, number), "sub": (1.0, -number), "mul": (number, 0.0)}
            if function in numbers:
                return writer.affine(one, *numbers[function])
        return writer.both(function, one, two)

    return rule


def _reversed_subtract(writer: Writer, self: Any, other: Any, alpha: Any) -> Value:
    return writer.affine(writer.value(self), -float(alpha), float(other))


def _clamp(writer: Writer, self: Any, min: Any, max: Any) -> Value:
    value = writer.value(self)
    if min is not None:
        value = writer.map("clamp_min", value.shape, (writer.tile(value),), (float(min), 0.0))
    if max is not None:
        negative = writer.affine(value, -1.0, 0.0)
        lowest = writer.map("clamp_min", value.shape, (writer.tile(negative),), (-float(max), 0.0))
        value = writer.affine(lowest, -1.0, 0.0)
    return value


def _clamp_min(writer: Writer, self: Any, min: Any) -> Value:
    return _clamp(writer, self, min, None)


def _clamp_max(writer: Writer, self: Any, max: Any) -> Value:
    return _clamp(writer, self, None, max)


def _power(writer: Writer, self: Any, exponent: Any) -> Value:
    if exponent != 2:
        raise Untraceable(f"params to the power of {exponent}")
    tile = writer.tile(writer.value(self))
    return writer.map("mul", writer.value(self).shape, (tile, tile))


def _sum(writer: Writer, self: Any, dim: Any = None, keepdim: bool = False) -> Value:
    value = writer.value(self)
    axes = [axis % len(value.shape) for axis in dim] if dim else range(len(value.shape))
    kept = [1 if axis in axes else size for axis, size in enumerate(value.shape)]
    shape = kept if keepdim else [size for axis, size in enumerate(value.shape) if axis not in axes]
    places = torch.arange(math.prod(kept)).view(kept).expand(value.shape)
    return writer.scatter(value, places, shape)


def _sum_of_all(writer: Writer, self: Any) -> Value:
    return _sum(writer, self)


def _product(writer: Writer, self: Any, mat2: Any) -> Value:
    """A product of two matrices: all products of elements, summed over the axis between."""
    left, right = writer.value(self), writer.value(mat2)
    shape = (left.shape[0], left.shape[1], right.shape[1])
    if math.prod(shape) > LARGEST:
        raise Untraceable(f"a product of matrices of {shape}")
    left_places, right_places = (torch.arange(math.prod(value.shape)).view(value.shape) for value in (left, right))
    factors = writer.gather(left, left_places[:, :, None].expand(shape))
    others = writer.gather(right, right_places[None].expand(shape))
    products = writer.map("mul", shape, [writer.tile(factors), writer.tile(others)])
    places = torch.arange(shape[0] * shape[2]).view(shape[0], 1, shape[2]).expand(shape)
    return writer.scatter(products, places, (shape[0], shape[2]))


def _together(writer: Writer, tensors: Sequence[Any], dim: Any, join: Callable[..., Tensor]) -> Value:
    """Tensors joined along an axis, each scattered to its places among all."""
    values = [writer.value(tensor) for tensor in tensors]
    ends = torch.tensor([math.prod(value.shape) for value in values]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    numbered = [torch.arange(a, b).view(v.shape) for a, b, v in zip(starts, ends, values, strict=True)]
    joined = join(numbered, dim)
    places, total = joined.flatten().argsort(), None
    for start, end, value in zip(starts, ends, values, strict=True):
        part = writer.scatter(value, places[start:end], joined.shape)
        total = part if total is None else writer.both("add", total, part)
    assert total is not None
    return total


def _concatenate(writer: Writer, tensors: Any, dim: Any) -> Value:
    return _together(writer, tensors, dim, torch.cat)


def _stack(writer: Writer, tensors: Any, dim: Any) -> Value:
    return _together(writer, tensors, dim, torch.stack)


def _detach(writer: Writer, self: Any) -> Value:
    value = writer.value(self)
    return Value(value.shape, writer.tile(value).stop())


def _copy(writer: Writer, self: Any, dtype: Any) -> Value:
    if dtype not in (None, writer.dtype):
        raise Untraceable(f"params turned into {dtype}")
    return writer.value(self)


MOVES = frozenset({
    aten.t.default, aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.select.int,
    aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.transpose.int,
    aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.expand.default,
    aten.clone.default, aten.flip.default, aten.roll.default, aten.diagonal.default, aten.repeat.default,
    aten.alias.default,
})  # fmt: skip
"""Operations that only rearrange or repeat the elements of their first argument."""

_NAMES = ("sigmoid", "tanh", "relu", "exp", "log", "sqrt", "sin", "cos", "abs", "softplus", "reciprocal")
RULES: Mapping[Any, Callable[..., Value]] = {
    **{getattr(aten, name).default: _of_one(name) for name in _NAMES},
    **{getattr(aten, name).Tensor: _of_two(name) for name in ("add", "sub", "mul", "div")},
    aten.maximum.default: _of_two("maximum"),
    aten.minimum.default: _of_two("minimum"),
    aten.rsub.Scalar: _reversed_subtract,
    aten.neg.default: lambda writer, self: writer.affine(writer.value(self), -1.0, 0.0),
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp_min,
    aten.clamp_max.default: _clamp_max,
    aten.pow.Tensor_Scalar: _power,
    aten.sum.default: _sum_of_all,
    aten.sum.dim_IntList: _sum,
    aten.mm.default: _product,
    aten.cat.default: _concatenate,
    aten.stack.default: _stack,
    aten.detach.default: _detach,
    aten._to_copy.default: _copy,
}
"""Table of rules: parameters after the first are the arguments that are read; all others have their defaults."""


