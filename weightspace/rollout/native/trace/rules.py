"""The tile operations that each tensor operation of a traced graph becomes.

The parameters of a rule after the node are the arguments of the tensor operation that it reads, by their names in
torch's schema. Any other argument must have its default, or the operation is refused: see `translated`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from weightspace.families.spike import SPIKE
from weightspace.rollout.native.trace.program import Addend, Linear, Map, Ref, Term, Untraceable
from weightspace.rollout.native.trace.tape import Tape

aten = torch.ops.aten

UNARY = {
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.relu.default: "relu",
    aten.exp.default: "exp",
    aten.log.default: "log",
    aten.sqrt.default: "sqrt",
    aten.sin.default: "sin",
    aten.cos.default: "cos",
    aten.abs.default: "abs",
}
SOFTPLUS_THRESHOLD = 20
"""Threshold above which softplus (of the argument times beta) is the identity: the default of torch."""


def translated(tape: Tape, node: fx.Node) -> Any:
    """The tiles of a batched node; Untraceable if a rule is missing or does not read one of the arguments."""
    target: Any = node.target
    if target not in RULES:
        raise Untraceable(f"there is no tile operation for {target}")
    return RULES[target](tape, node, **arguments_of(node, RULES[target], skipped=2))


def arguments_of(node: fx.Node, rule: Callable[..., Any], skipped: int) -> dict[str, Any]:
    """The arguments that a rule reads, by name; Untraceable if another one does not have its default.

    The rule's first `skipped` parameters are not arguments of the operation.
    """
    schema: Any = node.target._schema  # type: ignore[union-attr]
    values = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    values |= node.kwargs
    read = list(inspect.signature(rule).parameters)[skipped:]
    for argument in schema.arguments:
        value = values.setdefault(argument.name, argument.default_value)
        if argument.name not in read and value != argument.default_value:
            raise Untraceable(f"there is no tile operation for {node.target} with {argument.name}={value}")
    return {name: values[name] for name in read}


def _number(value: Any) -> float | None:
    """A Python number, None for a node."""
    return float(value) if isinstance(value, int | float) else None


def _mm(tape: Tape, node: fx.Node, self: Any, mat2: Any) -> Linear:
    """x W^T."""
    if self not in tape.known or mat2 in tape.known:
        raise Untraceable(f"{node.target} of something other than a tile and params")
    matrix = tape.matrix(mat2)
    return Linear(matrix.rows, (Term(matrix, tape.tile(self)),))


def _addmm(tape: Tape, node: fx.Node, self: Any, mat1: Any, mat2: Any) -> Linear:
    """b + x W^T."""
    if self in tape.known:
        raise Untraceable(f"{node.target} with a tile in place of a bias")
    product = _mm(tape, node, mat1, mat2)
    return Linear(product.rows, product.terms, (tape.vector(self, product.rows),))


def _add(tape: Tape, node: fx.Node, self: Any, other: Any) -> Linear | Ref:
    if (number := _number(other)) is not None:
        return tape.emit("affine", (tape.tile(self),), (1.0, number))
    if self in tape.known and other in tape.known:
        left, right = tape.linear(self), tape.linear(other)
        if left.rows != right.rows:
            raise Untraceable(f"{node.target} joins tiles of different sizes")
        return Linear(
            left.rows, left.terms + right.terms, left.biases + right.biases, left.addends + right.addends
        )
    batched, params = (self, other) if self in tape.known else (other, self)
    left = tape.linear(batched)
    return Linear(left.rows, left.terms, (*left.biases, tape.vector(params, left.rows)), left.addends)


def _subtract(tape: Tape, node: fx.Node, self: Any, other: Any) -> Linear | Ref:
    if (number := _number(other)) is not None:
        return tape.emit("affine", (tape.tile(self),), (1.0, -number))
    if self in tape.known and other in tape.known:
        left, right = tape.linear(self), tape.linear(other)
        if left.rows != right.rows:
            raise Untraceable(f"{node.target} joins tiles of different sizes")
        if right.terms or right.biases:
            right = Linear(right.rows, addends=(Addend(tape.tile(other)),))
        negated = tuple(addend.times(-1.0) for addend in right.addends)
        return Linear(left.rows, left.terms, left.biases, left.addends + negated)
    if self in tape.known:
        tile = tape.tile(self)
        return tape.emit("add_vector", (tile, tape.vector(tape.of_params(aten.neg.default, other), tile.rows)))
    negative = tape.emit("affine", (tape.tile(other),), (-1.0, 0.0))
    return tape.emit("add_vector", (negative, tape.vector(self, negative.rows)))


def _reversed_subtract(tape: Tape, node: fx.Node, self: Any, other: Any, alpha: Any) -> Ref:
    """number - alpha * tile."""
    return tape.emit("affine", (tape.tile(self),), (-float(alpha), float(other)))


def _multiply(tape: Tape, node: fx.Node, self: Any, other: Any) -> Linear | Ref:
    if (number := _number(other)) is not None:
        return tape.scaled(self, number)
    if self in tape.known and other in tape.known:
        return tape.map(node, "mul", (tape.tile(self), tape.tile(other)))
    batched, params = (self, other) if self in tape.known else (other, self)
    return tape.scaled(batched, vector=params)


def _divide(tape: Tape, node: fx.Node, self: Any, other: Any) -> Linear | Ref:
    if (number := _number(other)) is not None:
        if number == 0:
            raise Untraceable("a tile divided by the number 0")
        if abs(1 / number) > torch.finfo(tape.dtype).max:
            raise Untraceable(f"a tile divided by {number}, of which {tape.dtype} has no reciprocal")
        return tape.scaled(self, 1 / number)
    if self in tape.known and other in tape.known:
        return tape.map(node, "div", (tape.tile(self), tape.tile(other)))
    if self not in tape.known:
        raise Untraceable("params divided by a tile")
    return tape.scaled(self, vector=tape.of_params(aten.reciprocal.default, other))


def _larger(tape: Tape, node: fx.Node, self: Any, other: Any) -> Ref:
    return tape.map(node, "maximum", (tape.tile(self), tape.tile(other)))


def _smaller(tape: Tape, node: fx.Node, self: Any, other: Any) -> Ref:
    return tape.map(node, "minimum", (tape.tile(self), tape.tile(other)))


def _clamp(tape: Tape, node: fx.Node, self: Any, min: Any, max: Any) -> Ref:
    """max(tile, min) and min(tile, max), either bound None where there is none."""
    tile = tape.tile(self)
    if min is not None:
        tile = tape.emit("clamp_min", (tile,), (float(min), 0.0))
    if max is not None:
        negative = tape.emit("affine", (tile,), (-1.0, 0.0))
        tile = tape.emit("affine", (tape.emit("clamp_min", (negative,), (-float(max), 0.0)),), (-1.0, 0.0))
    return tile


def _negate(tape: Tape, node: fx.Node, self: Any) -> Linear:
    return tape.scaled(self, -1.0)


def _softplus(tape: Tape, node: fx.Node, self: Any, beta: Any) -> Ref:
    """softplus(beta x) / beta."""
    tile, beta = tape.tile(self), float(beta)
    if beta == 1:
        return tape.emit("softplus", (tile,))
    if beta <= 0:
        raise Untraceable(f"softplus with beta={beta}")
    scaled = tape.emit("affine", (tile,), (beta, 0.0))
    return tape.emit("affine", (tape.emit("softplus", (scaled,)),), (1 / beta, 0.0))


def _leaky_relu(tape: Tape, node: fx.Node, self: Any, negative_slope: Any) -> Ref:
    slope = float(negative_slope)
    if slope <= 0:
        raise Untraceable(f"a leaky ReLU with the slope {slope}")
    return tape.emit("leaky_relu", (tape.tile(self),), (slope,))


def _spike(tape: Tape, node: fx.Node, x: Any, slope: Any) -> Ref:
    """1 where tile + offset is above 0; the potential's distance from a constant threshold is no tile of its own."""
    tile, offset = tape.tile(x), 0.0
    operation = next((op for op in tape.operations if op.out == tile), None)
    if isinstance(operation, Map) and operation.function == "affine" and operation.constants[0] == 1:
        (tile,), (_, offset) = operation.reads, operation.constants
    return tape.emit("spike", (tile,), (float(slope), offset))


def _split(tape: Tape, node: fx.Node, self: Any, split_size: Any, dim: Any) -> list[Linear]:
    if dim not in (1, -1):
        raise Untraceable("a tile is split over its sequences")
    whole = tape.linear(self)
    return [whole.part(start, min(split_size, whole.rows - start)) for start in range(0, whole.rows, split_size)]


def _slice(tape: Tape, node: fx.Node, self: Any, dim: Any, start: Any, end: Any, step: Any) -> Ref:
    tile = tape.tile(self)
    if dim not in (1, -1) or step != 1:
        raise Untraceable("a slice over sequences or with a step")
    low, high, _ = slice(start, end).indices(tile.rows)
    if low >= high:
        raise Untraceable("an empty slice")
    return tile.part(low, high - low)


def _concatenate(tape: Tape, node: fx.Node, tensors: Sequence[Any], dim: Any) -> Ref:
    if dim not in (1, -1):
        raise Untraceable("tiles are put together over their sequences")
    return tape.concatenate([tape.tile(part) for part in tensors])


def _detach(tape: Tape, node: fx.Node, self: Any) -> Ref:
    return tape.tile(self).stop()


def _clone(tape: Tape, node: fx.Node, self: Any, memory_format: Any) -> Any:
    """The tile itself: its order in torch's memory does not matter."""
    return tape.linear(self)


def _power(tape: Tape, node: fx.Node, self: Any, exponent: Any) -> Ref:
    if exponent != 2:
        raise Untraceable(f"a tile to the power of {exponent}")
    tile = tape.tile(self)
    return tape.emit("mul", (tile, tile))


def _element_wise(function: str) -> Callable[..., Ref]:
    def rule(tape: Tape, node: fx.Node, self: Any) -> Ref:
        return tape.emit(function, (tape.tile(self),))

    return rule


RULES: Mapping[Any, Callable[..., Any]] = {
    **{target: _element_wise(function) for target, function in UNARY.items()},
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _subtract,
    aten.rsub.Scalar: _reversed_subtract,
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _divide,
    aten.maximum.default: _larger,
    aten.minimum.default: _smaller,
    aten.clamp.default: _clamp,
    aten.neg.default: _negate,
    aten.softplus.default: _softplus,
    aten.leaky_relu.default: _leaky_relu,
    SPIKE: _spike,
    aten.split.Tensor: _split,
    aten.slice.Tensor: _slice,
    aten.cat.default: _concatenate,
    aten.clone.default: _clone,
    aten.detach.default: _detach,
    aten.pow.Tensor_Scalar: _power,
}
