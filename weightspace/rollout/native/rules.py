"""What each tensor operation of a traced graph becomes in a program of tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from weightspace.families.spike import SPIKE
from weightspace.rollout.native.program import Linear, Ref, Untraceable

if TYPE_CHECKING:
    from weightspace.rollout.native.trace import Tracer

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
    aten.softplus.default: "softplus",
    aten.abs.default: "abs",
}
BINARY = {
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.maximum.default: "maximum",
    aten.minimum.default: "minimum",
}


def _product(tracer: Tracer, node: fx.Node) -> Linear:
    """x W^T, or b + x W^T."""
    *bias, tile, weight = node.args
    batched = [arg in tracer.known for arg in (*bias, tile, weight)]
    if batched != [False] * len(bias) + [True, False] or node.kwargs:
        raise Untraceable(f"{node.target} of something other than params and a tile")
    assert isinstance(weight, fx.Node)
    matrix = tracer.matrix(weight)
    biases = tuple(tracer.vector(one, node) for one in bias if isinstance(one, fx.Node))
    return Linear(matrix.rows, ((matrix, tracer.tile(tile)),), biases)


def _add(tracer: Tracer, node: fx.Node) -> Linear | Ref:
    left, right = node.args
    if node.kwargs:
        raise Untraceable(f"{node.target} with a factor")
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return tracer.emit("affine", (tracer.tile(left),), (1.0, float(right)))  # type: ignore[arg-type]
    if left in tracer.known and right in tracer.known:
        one, other = tracer.linear(left), tracer.linear(right)
        if one.rows != other.rows:
            raise Untraceable(f"{node.target} joins tiles of different sizes")
        return Linear(one.rows, one.terms + other.terms, one.biases + other.biases, one.addends + other.addends)
    tile, params = (left, right) if left in tracer.known else (right, left)
    known = tracer.linear(tile)
    return Linear(known.rows, known.terms, (*known.biases, tracer.vector(params, tile)), known.addends)


def _subtract(tracer: Tracer, node: fx.Node) -> Ref:
    left, right = node.args
    if node.kwargs:
        raise Untraceable(f"{node.target} with a factor")
    if not isinstance(right, fx.Node):
        return tracer.emit("affine", (tracer.tile(left),), (1.0, -float(right)))  # type: ignore[arg-type]
    if not isinstance(left, fx.Node):
        return tracer.emit("affine", (tracer.tile(right),), (-1.0, float(left)))  # type: ignore[arg-type]
    if left in tracer.known and right in tracer.known:
        return tracer.map(node, "sub", (tracer.tile(left), tracer.tile(right)))
    if left in tracer.known:
        return tracer.map(
            node, "add_vector", (tracer.tile(left), tracer.vector(tracer.of_params(aten.neg.default, right), left))
        )
    negative = tracer.emit("affine", (tracer.tile(right),), (-1.0, 0.0))
    return tracer.map(node, "add_vector", (negative, tracer.vector(left, right)))


def _reversed_subtract(tracer: Tracer, node: fx.Node) -> Ref:
    """number - tile."""
    tile, number = node.args[:2]
    return tracer.emit("affine", (tracer.tile(tile),), (-1.0, float(number)))  # type: ignore[arg-type]


def _negate(tracer: Tracer, node: fx.Node) -> Ref:
    return tracer.emit("affine", (tracer.tile(node.args[0]),), (-1.0, 0.0))


def _leaky_relu(tracer: Tracer, node: fx.Node) -> Ref:
    slope = float(node.args[1]) if len(node.args) > 1 else 0.01  # type: ignore[arg-type]
    if slope <= 0:
        raise Untraceable(f"a leaky ReLU with the slope {slope}")
    return tracer.emit("leaky_relu", (tracer.tile(node.args[0]),), (slope,))


def _spike(tracer: Tracer, node: fx.Node) -> Ref:
    tile, slope = node.args
    return tracer.emit("spike", (tracer.tile(tile),), (float(slope),))  # type: ignore[arg-type]


def _split(tracer: Tracer, node: fx.Node) -> list[Linear]:
    source, size, dim = (*node.args, 0)[:3]
    if dim not in (1, -1):
        raise Untraceable("a tile is split over its sequences")
    whole = tracer.linear(source)
    assert isinstance(size, int)
    return [whole.part(start, min(size, whole.rows - start)) for start in range(0, whole.rows, size)]


def _slice(tracer: Tracer, node: fx.Node) -> Any:
    source, dim, start, end, step = (*node.args, *(0, 0, None, 1)[len(node.args) - 1 :])[:5]
    tile = tracer.tile(source)
    if dim not in (1, -1) or step != 1:
        raise Untraceable("a slice over sequences or with a step")
    low, high, _ = slice(start, end).indices(tile.rows)
    return tile.part(low, high - low)


def _concatenate(tracer: Tracer, node: fx.Node) -> Ref:
    parts, dim = (*node.args, 0)[:2]
    if dim not in (1, -1):
        raise Untraceable("tiles are put together over their sequences")
    assert isinstance(parts, list | tuple)
    tiles = [tracer.tile(part) for part in parts]
    return tracer.concatenate(tiles)


def _detach(tracer: Tracer, node: fx.Node) -> Ref:
    return tracer.tile(node.args[0]).stop()


def _same(tracer: Tracer, node: fx.Node) -> Any:
    return tracer.known[node.args[0]]  # type: ignore[index]


def _square(tracer: Tracer, node: fx.Node) -> Ref:
    if node.args[1] != 2:
        raise Untraceable(f"a tile to the power of {node.args[1]}")
    tile = tracer.tile(node.args[0])
    return tracer.emit("mul", (tile, tile))


RULES: Mapping[Any, Callable[[Tracer, fx.Node], Any]] = {
    aten.mm.default: _product,
    aten.addmm.default: _product,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _subtract,
    aten.rsub.Scalar: _reversed_subtract,
    aten.neg.default: _negate,
    aten.leaky_relu.default: _leaky_relu,
    SPIKE: _spike,
    aten.split.Tensor: _split,
    aten.slice.Tensor: _slice,
    aten.cat.default: _concatenate,
    aten.clone.default: _same,
    aten.detach.default: _detach,
    aten.pow.Tensor_Scalar: _square,
}
