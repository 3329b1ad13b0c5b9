"""The tile operations that each tensor operation of a traced graph becomes.

The parameters of a rule after the node are the arguments of the tensor operation that it reads, by their names in
torch's schema. Any other argument must have its default, or the operation is refused: see `translated`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from weightspace.families.spike import SPIKE
from weightspace.rollout.native.trace.program import Linear, Ref, Untraceable

if TYPE_CHECKING:
    from weightspace.rollout.native.trace.tracer import Tracer

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
"""Above it, times beta, softplus is the identity: torch's default, and the engine's."""


def translated(tracer: Tracer, node: fx.Node) -> Any:
    """The tiles of a batched node; Untraceable if a rule is missing or does not read one of the arguments."""
    target: Any = node.target
    if target not in RULES:
        raise Untraceable(f"there is no tile operation for {target}")
    return RULES[target](tracer, node, **arguments_of(node, RULES[target], skipped=2))


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


def _mm(tracer: Tracer, node: fx.Node, self: Any, mat2: Any) -> Linear:
    """x W^T."""
    if self not in tracer.known or mat2 in tracer.known:
        raise Untraceable(f"{node.target} of something other than a tile and params")
    matrix = tracer.matrix(mat2)
    return Linear(matrix.rows, ((matrix, tracer.tile(self)),))


def _addmm(tracer: Tracer, node: fx.Node, self: Any, mat1: Any, mat2: Any) -> Linear:
    """b + x W^T."""
    if self in tracer.known:
        raise Untraceable(f"{node.target} with a tile in place of a bias")
    product = _mm(tracer, node, mat1, mat2)
    return Linear(product.rows, product.terms, (tracer.vector(self, product.rows),))


def _add(tracer: Tracer, node: fx.Node, self: Any, other: Any) -> Linear | Ref:
    if (number := _number(other)) is not None:
        return tracer.emit("affine", (tracer.tile(self),), (1.0, number))
    if self in tracer.known and other in tracer.known:
        left, right = tracer.linear(self), tracer.linear(other)
        if left.rows != right.rows:
            raise Untraceable(f"{node.target} joins tiles of different sizes")
        return Linear(
            left.rows, left.terms + right.terms, left.biases + right.biases, left.addends + right.addends
        )
    batched, params = (self, other) if self in tracer.known else (other, self)
    left = tracer.linear(batched)
    return Linear(left.rows, left.terms, (*left.biases, tracer.vector(params, left.rows)), left.addends)


def _subtract(tracer: Tracer, node: fx.Node, self: Any, other: Any) -> Ref:
    if (number := _number(other)) is not None:
        return tracer.emit("affine", (tracer.tile(self),), (1.0, -number))
    if self in tracer.known and other in tracer.known:
        return tracer.map(node, "sub", (tracer.tile(self), tracer.tile(other)))
    if self in tracer.known:
        tile = tracer.tile(self)
        return tracer.emit("add_vector", (tile, tracer.vector(tracer.of_params(aten.neg.default, other), tile.rows)))
    negative = tracer.emit("affine", (tracer.tile(other),), (-1.0, 0.0))
    return tracer.emit("add_vector", (negative, tracer.vector(self, negative.rows)))


def _reversed_subtract(tracer: Tracer, node: fx.Node, self: Any, other: Any, alpha: Any) -> Ref:
    """number - alpha * tile."""
    return tracer.emit("affine", (tracer.tile(self),), (-float(alpha), float(other)))


def _multiply(tracer: Tracer, node: fx.Node, self: Any, other: Any) -> Ref:
    if (number := _number(other)) is not None:
        return tracer.emit("affine", (tracer.tile(self),), (number, 0.0))
    if self in tracer.known and other in tracer.known:
        return tracer.map(node, "mul", (tracer.tile(self), tracer.tile(other)))
    batched, params = (self, other) if self in tracer.known else (other, self)
    tile = tracer.tile(batched)
    return tracer.emit("mul_vector", (tile, tracer.vector(params, tile.rows)))


def _divide(tracer: Tracer, node: fx.Node, self: Any, other: Any) -> Ref:
    if (number := _number(other)) is not None:
        if number == 0:
            raise Untraceable("a tile divided by the number 0")
        return tracer.emit("affine", (tracer.tile(self),), (1 / number, 0.0))
    if self in tracer.known and other in tracer.known:
        return tracer.map(node, "div", (tracer.tile(self), tracer.tile(other)))
    if self not in tracer.known:
        raise Untraceable("params divided by a tile")
    tile = tracer.tile(self)
    return tracer.emit("mul_vector", (tile, tracer.vector(tracer.of_params(aten.reciprocal.default, other), tile.rows)))


def _larger(tracer: Tracer, node: fx.Node, self: Any, other: Any) -> Ref:
    return tracer.map(node, "maximum", (tracer.tile(self), tracer.tile(other)))


def _smaller(tracer: Tracer, node: fx.Node, self: Any, other: Any) -> Ref:
    return tracer.map(node, "minimum", (tracer.tile(self), tracer.tile(other)))


def _negate(tracer: Tracer, node: fx.Node, self: Any) -> Ref:
    return tracer.emit("affine", (tracer.tile(self),), (-1.0, 0.0))


def _softplus(tracer: Tracer, node: fx.Node, self: Any, beta: Any) -> Ref:
    """softplus(beta x) / beta."""
    tile, beta = tracer.tile(self), float(beta)
    if beta == 1:
        return tracer.emit("softplus", (tile,))
    if beta <= 0:
        raise Untraceable(f"softplus with beta={beta}")
    scaled = tracer.emit("affine", (tile,), (beta, 0.0))
    return tracer.emit("affine", (tracer.emit("softplus", (scaled,)),), (1 / beta, 0.0))


def _leaky_relu(tracer: Tracer, node: fx.Node, self: Any, negative_slope: Any) -> Ref:
    slope = float(negative_slope)
    if slope <= 0:
        raise Untraceable(f"a leaky ReLU with the slope {slope}")
    return tracer.emit("leaky_relu", (tracer.tile(self),), (slope,))


def _spike(tracer: Tracer, node: fx.Node, x: Any, slope: Any) -> Ref:
    return tracer.emit("spike", (tracer.tile(x),), (float(slope),))


def _split(tracer: Tracer, node: fx.Node, self: Any, split_size: Any, dim: Any) -> list[Linear]:
    if dim not in (1, -1):
        raise Untraceable("a tile is split over its sequences")
    whole = tracer.linear(self)
    return [whole.part(start, min(split_size, whole.rows - start)) for start in range(0, whole.rows, split_size)]


def _slice(tracer: Tracer, node: fx.Node, self: Any, dim: Any, start: Any, end: Any, step: Any) -> Ref:
    tile = tracer.tile(self)
    if dim not in (1, -1) or step != 1:
        raise Untraceable("a slice over sequences or with a step")
    low, high, _ = slice(start, end).indices(tile.rows)
    if low >= high:
        raise Untraceable("an empty slice")
    return tile.part(low, high - low)


def _concatenate(tracer: Tracer, node: fx.Node, tensors: Sequence[Any], dim: Any) -> Ref:
    if dim not in (1, -1):
        raise Untraceable("tiles are put together over their sequences")
    return tracer.concatenate([tracer.tile(part) for part in tensors])


def _detach(tracer: Tracer, node: fx.Node, self: Any) -> Ref:
    return tracer.tile(self).stop()


def _clone(tracer: Tracer, node: fx.Node, self: Any, memory_format: Any) -> Any:
    """The same numbers: where they lie in torch's memory does not matter."""
    return tracer.linear(self)


def _power(tracer: Tracer, node: fx.Node, self: Any, exponent: Any) -> Ref:
    if exponent != 2:
        raise Untraceable(f"a tile to the power of {exponent}")
    tile = tracer.tile(self)
    return tracer.emit("mul", (tile, tile))


def _element_wise(function: str) -> Callable[..., Ref]:
    def rule(tracer: Tracer, node: fx.Node, self: Any) -> Ref:
        return tracer.emit(function, (tracer.tile(self),))

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
