"""The derivative of every map, as shares of the gradients of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from weightspace.rollout.native.backward import Backward
from weightspace.rollout.native.program import Map, Matrix, Ref, SumInto


def _tiles(operation: Map) -> list[Ref]:
    return [arg for arg in operation.args if isinstance(arg, Ref)]


def _of_result(function: str) -> Callable[[Backward, Map, Ref], None]:
    """Maps whose derivative is a function of their result."""

    def rule(back: Backward, operation: Map, dy: Ref) -> None:
        back.add(_tiles(operation)[0], (function, (dy, operation.out), operation.constants))

    return rule


def _of_argument(function: str) -> Callable[[Backward, Map, Ref], None]:
    """Maps whose derivative is a function of their argument."""

    def rule(back: Backward, operation: Map, dy: Ref) -> None:
        back.add(_tiles(operation)[0], (function, (dy, _tiles(operation)[0]), operation.constants))

    return rule


def _through_function(function: str, sign: float = 1.0) -> Callable[[Backward, Map, Ref], None]:
    """Maps whose derivative is another map of their argument."""

    def rule(back: Backward, operation: Map, dy: Ref) -> None:
        slope = back.builder.value(operation.out.rows)
        back.operations.append(Map(slope, function, (_tiles(operation)[0],)))
        if sign != 1:
            signed = back.builder.value(slope.rows)
            back.operations.append(Map(signed, "affine", (slope,), (sign, 0.0)))
            slope = signed
        back.add(_tiles(operation)[0], ("mul", (dy, slope), ()))

    return rule


def _copy(back: Backward, operation: Map, dy: Ref) -> None:
    for tile in _tiles(operation):
        back.add(tile, dy)


def _subtract(back: Backward, operation: Map, dy: Ref) -> None:
    left, right = _tiles(operation)
    back.add(left, dy)
    back.add(right, ("affine", (dy,), (-1.0, 0.0)))


def _multiply(back: Backward, operation: Map, dy: Ref) -> None:
    left, right, *addend = _tiles(operation)
    back.add(left, ("mul", (dy, right), ()))
    back.add(right, ("mul", (dy, left), ()))
    for tile in addend:
        back.add(tile, dy)


def _divide(back: Backward, operation: Map, dy: Ref) -> None:
    left, right = _tiles(operation)
    share = back.builder.value(dy.rows)
    back.operations.append(Map(share, "div", (dy, right)))
    product = back.builder.value(dy.rows)
    back.operations.append(Map(product, "mul", (share, operation.out)))
    back.add(left, share)
    back.add(right, ("affine", (product,), (-1.0, 0.0)))


def _sqrt(back: Backward, operation: Map, dy: Ref) -> None:
    share = back.builder.value(dy.rows)
    back.operations.append(Map(share, "div", (dy, operation.out)))
    back.add(_tiles(operation)[0], ("affine", (share,), (0.5, 0.0)))


def _affine(back: Backward, operation: Map, dy: Ref) -> None:
    back.add(_tiles(operation)[0], ("affine", (dy,), (operation.constants[0], 0.0)))


def _larger(sign: float) -> Callable[[Backward, Map, Ref], None]:
    def rule(back: Backward, operation: Map, dy: Ref) -> None:
        left, right = _tiles(operation)
        order = (left, right) if sign > 0 else (right, left)
        back.add(left, ("greater_grad", (dy, *order), ()))
        back.add(right, ("greater_grad", (dy, *order[::-1]), ()))

    return rule


def _plus_vector(back: Backward, operation: Map, dy: Ref) -> None:
    tile, vector = operation.args
    assert isinstance(tile, Ref)
    assert isinstance(vector, Matrix)
    back.operations.append(SumInto(vector, dy))
    back.add(tile, dy)


def _times_vector(back: Backward, operation: Map, dy: Ref) -> None:
    tile, vector, *addend = operation.args
    assert isinstance(tile, Ref)
    assert isinstance(vector, Matrix)
    back.operations.append(SumInto(vector, dy, tile))
    back.add(tile, ("mul_vector", (dy, vector), ()))
    for one in addend:
        assert isinstance(one, Ref)
        back.add(one, dy)


DERIVATIVES: Mapping[str, Callable[[Backward, Map, Ref], None]] = {
    "copy": _copy,
    "add": _copy,
    "sub": _subtract,
    "mul": _multiply,
    "fma": _multiply,
    "div": _divide,
    "affine": _affine,
    "sigmoid": _of_result("sigmoid_grad"),
    "tanh": _of_result("tanh_grad"),
    "relu": _of_result("relu_grad"),
    "leaky_relu": _of_result("leaky_relu_grad"),
    "spike": _of_argument("spike_grad"),
    "exp": _of_result("mul"),
    "log": _of_argument("div"),
    "abs": _of_argument("abs_grad"),
    "sqrt": _sqrt,
    "sin": _through_function("cos"),
    "cos": _through_function("sin", -1.0),
    "softplus": _through_function("sigmoid"),
    "maximum": _larger(1.0),
    "minimum": _larger(-1.0),
    "add_vector": _plus_vector,
    "mul_vector": _times_vector,
    "fma_vector": _times_vector,
}
