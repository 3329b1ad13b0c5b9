"""The derivative of every map, whichever way it is carried, and how shares of derivatives are summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weightspace.rollout.native.trace.program import Builder, Map, Matrix, Ref

Share = Ref | tuple[str, tuple[Ref | Matrix, ...], tuple[float, ...]]
"""Part of a derivative: a tile as it is, or a map of tiles."""
Slope = tuple[str, Ref, tuple[float, ...]]
"""A map of one tile, with its constants."""
FUSED = {"mul": "fma", "mul_vector": "fma_vector"}
"""Maps that another does together with adding something."""


@dataclass(kw_only=True)
class Derivation:
    """Operations that carry derivatives, gradients backward or tangents forward, as they are written."""

    builder: Builder
    slopes: dict[Slope, Ref] = field(default_factory=dict)
    """What has been computed to multiply derivatives by; one may serve many."""
    operations: list[Any] = field(default_factory=list)

    def emit(
        self,
        function: str,
        args: tuple[Ref | Matrix, ...] = (),
        constants: tuple[float, ...] = (),
        out: Ref | None = None,
    ) -> Ref:
        """Where a map of tiles is computed, a new value unless a place is given."""
        if out is None:
            out = self.builder.value(next(arg.rows for arg in args))
        self.operations.append(Map(out, function, args, constants))
        return out

    def slope(self, function: str, tile: Ref, constants: tuple[float, ...] = ()) -> Ref:
        """A function of a tile, computed once."""
        key = (function, tile, constants)
        if key not in self.slopes:
            self.slopes[key] = self.emit(function, (tile,), constants)
        return self.slopes[key]

    def accumulate(self, total: Ref | None, share: Share, out: Ref | None = None) -> Ref:
        """Where the sum of a total, if there is one yet, and a share is: in a new value unless a place is given."""
        if isinstance(share, Ref):
            return share if total is None else self.emit("add", (total, share), out=out)
        function, args, constants = share
        if total is None:
            return self.emit(function, args, constants, out)
        if function in FUSED:
            return self.emit(FUSED[function], (*args, total), out=out)
        if (function, constants) == ("affine", (-1.0, 0.0)):
            return self.emit("sub", (total, *args), out=out)
        return self.emit("add", (total, self.emit(function, args, constants)), out=out)


Partial = Callable[[Derivation, Map, Ref], Share]
"""What the derivative of a map with respect to one argument makes of a direction.

Forward, the direction is the argument's tangent and this a share of the result's; backward, it is the gradient of the
result and this a share of the argument's.
"""


def _same(to: Derivation, operation: Map, direction: Ref) -> Share:
    return direction


def _with_result(function: str) -> Partial:
    """A map of the direction and the result."""
    return lambda to, operation, direction: (function, (direction, operation.out), operation.constants)


def _with(function: str, *places: int) -> Partial:
    """A map of the direction and some arguments."""
    return lambda to, operation, direction: (
        function,
        (direction, *(operation.args[place] for place in places)),
        operation.constants,
    )


def _scaled(factor: float) -> Partial:
    return lambda to, operation, direction: ("affine", (direction,), (factor, 0.0))


def _affine(to: Derivation, operation: Map, direction: Ref) -> Share:
    return "affine", (direction,), (operation.constants[0], 0.0)


def _times_slope(function: str, sign: float = 1.0) -> Partial:
    """The direction times another map of the argument."""

    def partial(to: Derivation, operation: Map, direction: Ref) -> Share:
        (tile,) = operation.reads
        slope = to.slope(function, tile)
        return "mul", (direction, slope if sign == 1 else to.slope("affine", slope, (sign, 0.0))), ()

    return partial


def _sqrt(to: Derivation, operation: Map, direction: Ref) -> Share:
    return "affine", (to.emit("div", (direction, operation.out)),), (0.5, 0.0)


def _divisor(to: Derivation, operation: Map, direction: Ref) -> Share:
    quotient = to.emit("div", (direction, operation.args[1]))
    return "affine", (to.emit("mul", (quotient, operation.out)),), (-1.0, 0.0)


def _reciprocal(to: Derivation, operation: Map, direction: Ref) -> Share:
    once = to.emit("mul", (direction, operation.out))
    return "affine", (to.emit("mul", (once, operation.out)),), (-1.0, 0.0)


PARTIALS: Mapping[str, tuple[Partial, ...]] = {
    "copy": (_same,),
    "add": (_same, _same),
    "sub": (_same, _scaled(-1.0)),
    "mul": (_with("mul", 1), _with("mul", 0)),
    "fma": (_with("mul", 1), _with("mul", 0), _same),
    "div": (_with("div", 1), _divisor),
    "affine": (_affine,),
    "reciprocal": (_reciprocal,),
    "clamp_min": (_with("clamp_min_grad", 0),),
    "sigmoid": (_with_result("sigmoid_grad"),),
    "tanh": (_with_result("tanh_grad"),),
    "relu": (_with_result("relu_grad"),),
    "leaky_relu": (_with_result("leaky_relu_grad"),),
    "spike": (_with("spike_grad", 0),),
    "exp": (_with_result("mul"),),
    "log": (_with("div", 0),),
    "abs": (_with("abs_grad", 0),),
    "sqrt": (_sqrt,),
    "sin": (_times_slope("cos"),),
    "cos": (_times_slope("sin", -1.0),),
    "softplus": (_with("softplus_grad", 0),),
    "maximum": (_with("greater_grad", 0, 1), _with("greater_grad", 1, 0)),
    "minimum": (_with("greater_grad", 1, 0), _with("greater_grad", 0, 1)),
    "add_vector": (_same, _same),
    "mul_vector": (_with("mul_vector", 1), _with("mul", 0)),
    "fma_vector": (_with("mul_vector", 1), _with("mul", 0), _same),
}
"""The derivative of every map with respect to each argument; that of a vector is still to be summed over lanes."""
