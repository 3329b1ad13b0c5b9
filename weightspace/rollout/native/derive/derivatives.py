"""Derivatives of all maps, for both modes, and sums of shares of derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from weightspace.rollout.native.trace.program import Addend, Builder, Map, Matrix, Ref, Term, sum_of


class LazyMap(NamedTuple):
    """Postponed map of tiles: it may be computed together with a sum."""

    function: str
    args: tuple[Ref | Matrix, ...]
    constants: tuple[float, ...] = ()


Share = Addend | LazyMap
"""Part of a derivative: a tile, with or without a scale, or a map of tiles."""
Slope = tuple[str, Ref, tuple[float, ...]]
"""A map of one tile, with its constants."""


@dataclass(kw_only=True)
class Derivation:
    """Writer of operations that carry derivatives, gradients backward or tangents forward."""

    builder: Builder
    slopes: dict[Slope, Ref] = field(default_factory=dict)
    """Factors of derivatives that are computed already; one may serve several derivatives."""
    operations: list[Any] = field(default_factory=list)

    def emit(
        self,
        function: str,
        args: tuple[Ref | Matrix, ...] = (),
        constants: tuple[float, ...] = (),
        out: Ref | None = None,
    ) -> Ref:
        """Reference to a computed map of tiles: `out`, else a new value."""
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
        """Reference to the sum of a share and a total, if there is one yet: `out`, else a new value."""
        if isinstance(share, LazyMap):
            if total is None:
                return self.emit(*share, out=out)
            if share.function == "mul":
                return self.emit("fma", (*share.args, total), out=out)
            share = Addend(self.emit(*share))
        elif total is not None and share.vector is None and abs(share.scale) != 1:
            share = Addend(self.emit("affine", (share.tile,), (share.scale, 0.0)))
        return self.whole((share,) if total is None else (Addend(total), share), out)

    def whole(self, addends: tuple[Addend, ...], out: Ref | None = None) -> Ref:
        """Reference to the sum of addends: the tile of a single one without a scale, else `out` or a new value."""
        first = addends[0].tile
        if addends == (Addend(first),):
            return first
        if out is None:
            out = self.builder.value(first.rows)
        self.operations.append(sum_of(out, addends))
        return out

    def write(
        self,
        out: Ref,
        shares: Sequence[Share],
        terms: tuple[Term, ...] = (),
        bias: Matrix | None = None,
        *,
        transposed: bool = False,
    ) -> None:
        """out = the sum of shares, terms and bias; `out` itself may be one of the shares."""
        addends = tuple(share for share in shares if isinstance(share, Addend))
        if len(addends) < len(shares):
            addends = tuple(addend for addend in addends if addend.vector is not None or abs(addend.scale) != 1)
            rest = sorted((part for part in shares if part not in addends), key=_is_not_plain)
            is_all, total = not terms and bias is None and not addends, None
            for number, share in enumerate(rest, 1):
                total = self.accumulate(total, share, out if is_all and number == len(rest) else None)
            assert total is not None
            addends = (Addend(total), *addends)
        if terms or bias is not None or addends != (Addend(out),):
            self.operations.append(sum_of(out, addends, terms, bias, transposed=transposed))


def _is_not_plain(share: Share) -> bool:
    return not isinstance(share, Addend) or share != Addend(share.tile)


Partial = Callable[[Derivation, Map, Ref], Share]
"""A partial derivative of a map, applied to a direction.

Forward, the direction is the argument's tangent and this a share of the result's; backward, it is the gradient of the
result and this a share of the argument's.
"""


def _same(to: Derivation, operation: Map, direction: Ref) -> Share:
    return Addend(direction)


def _by_vector(to: Derivation, operation: Map, direction: Ref) -> Share:
    vector = operation.args[1]
    assert isinstance(vector, Matrix)
    return Addend(direction, vector=vector)


def _with_result(function: str) -> Partial:
    """A map of the direction and the result."""
    return lambda to, operation, direction: LazyMap(function, (direction, operation.out), operation.constants)


def _with(function: str, *places: int) -> Partial:
    """A map of the direction and some arguments."""
    return lambda to, operation, direction: LazyMap(
        function,
        (direction, *(operation.args[place] for place in places)),
        operation.constants,
    )


def _scaled(factor: float) -> Partial:
    return lambda to, operation, direction: Addend(direction, factor)


def _affine(to: Derivation, operation: Map, direction: Ref) -> Share:
    return Addend(direction, operation.constants[0])


def _times_slope(function: str, sign: float = 1.0) -> Partial:
    """The direction times another map of the argument."""

    def partial(to: Derivation, operation: Map, direction: Ref) -> Share:
        (tile,) = operation.reads
        slope = to.slope(function, tile)
        return LazyMap("mul", (direction, slope if sign == 1 else to.slope("affine", slope, (sign, 0.0))))

    return partial


def _sqrt(to: Derivation, operation: Map, direction: Ref) -> Share:
    return Addend(to.emit("div", (direction, operation.out)), 0.5)


def _divisor(to: Derivation, operation: Map, direction: Ref) -> Share:
    quotient = to.emit("div", (direction, operation.args[1]))
    return Addend(to.emit("mul", (quotient, operation.out)), -1.0)


def _reciprocal(to: Derivation, operation: Map, direction: Ref) -> Share:
    once = to.emit("mul", (direction, operation.out))
    return Addend(to.emit("mul", (once, operation.out)), -1.0)


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
    "mul_vector": (_by_vector, _with("mul", 0)),
    "fma_vector": (_by_vector, _with("mul", 0), _same),
}
"""The derivative of every map with respect to each argument; that of a vector is still to be summed over lanes."""
