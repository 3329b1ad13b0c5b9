"""Gradients of values on the way back: shares are collected until all readers of a value are done, then summed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from weightspace.rollout.native.derive.derivatives import PARTIALS, Derivation, Share
from weightspace.rollout.native.trace.program import (
    BackwardOperation,
    Map,
    Matrix,
    Operation,
    Product,
    Ref,
    SumInto,
    Untraceable,
    WeightGradient,
)

Term = tuple[Matrix, Ref]
"""Part of a gradient, too: a transposed matrix times a tile."""

WITH_PRODUCTS = ("sigmoid", "tanh")
"""Maps whose gradient can be taken of a product of two tiles in one pass."""


@dataclass(kw_only=True)
class Backward(Derivation):
    """Collects the shares of every value's gradient until all its readers are done, then writes their sum."""

    passing: set[int]
    """Values that are overwritten before the gradients of weights are taken."""
    operations: list[BackwardOperation] = field(default_factory=list)
    weights: list[WeightGradient] = field(default_factory=list)
    shares: dict[int, list[tuple[Ref, Share | Term]]] = field(default_factory=dict)
    found: dict[int, Ref | None] = field(default_factory=dict)
    summed: set[int] = field(default_factory=set)
    """Values whose shares have been summed."""

    def add(self, to: Ref, share: Share | Term) -> None:
        """A share of the gradient of some rows, unless gradients stop there."""
        if to.stopped:
            return
        if to.value in self.summed:
            raise Untraceable("a gradient would be summed before all its shares are known")
        self.shares.setdefault(to.value, []).append((to, share))

    def through(self, operation: Operation) -> None:
        """One operation, all of whose readers are done."""
        if isinstance(operation, Map) and operation.function in WITH_PRODUCTS and self._through_product(operation):
            return
        dy = self.gradient(operation.out)
        if dy is None:
            return
        if isinstance(operation, Map):
            self._through_map(operation, dy)
            return
        if dy.value in self.passing:
            dy = self.emit("copy", (dy,))
        for matrix, tile in operation.terms:
            self.add(tile, (matrix, dy))
            self.weights.append(WeightGradient(matrix, dy, tile))
        if operation.bias is not None:
            self.weights.append(WeightGradient(operation.bias, dy, None))
        if operation.addend is not None:
            self.add(operation.addend, dy)

    def _through_map(self, operation: Map, dy: Ref) -> None:
        for arg, partial in zip(operation.args, PARTIALS[operation.function], strict=True):
            share = partial(self, operation, dy)
            if isinstance(arg, Ref):
                self.add(arg, share)
            else:
                assert isinstance(share, Ref) or share[0] == "mul"
                factors = (share,) if isinstance(share, Ref) else share[1]
                self.operations.append(SumInto(arg, *(tile for tile in factors if isinstance(tile, Ref))))

    def _through_product(self, operation: Map) -> bool:
        """Whether the gradient of its result is one product of tiles, so that both can be done in one pass."""
        shares = self.shares.get(operation.out.value, [])
        whole = Ref(operation.out.value, 0, self.builder.rows[operation.out.value])
        if operation.out != whole or len(shares) != 1 or shares[0][0] != whole:
            return False
        share = shares[0][1]
        if isinstance(share, Ref) or len(share) != 3 or share[0] != "mul":
            return False
        (argument,) = operation.reads
        self.summed.add(whole.value)
        self.add(argument, (f"{operation.function}_grad_of_product", (*share[1], operation.out), ()))
        return True

    def gradient(self, of: Ref) -> Ref | None:
        """Where the gradient of some rows of a value is, None if nothing depends on the value."""
        whole = Ref(of.value, 0, self.builder.rows[of.value])
        if of.value not in self.found:
            self.summed.add(of.value)
            self.found[of.value] = self._gradient(whole)
        found = self.found[of.value]
        return None if found is None else found.part(of.start, of.rows)

    def _gradient(self, whole: Ref) -> Ref | None:
        shares = self.shares.get(whole.value, [])
        if not shares:
            return None
        if len(shares) == 1 and isinstance(shares[0][1], Ref) and shares[0][0] == whole:
            return shares[0][1]
        out = self.builder.value(whole.rows)
        self._write(out, shares)
        return out

    def finish(self, value: int, out: Ref) -> None:
        """Write the gradient of a whole value to a given place."""
        self.summed.add(value)
        shares = self.shares.get(value, [])
        if shares != [(Ref(value, 0, out.rows), out)]:
            self._write(out, shares)

    def refuse_lost_shares(self) -> None:
        """Raise Untraceable if a share of a gradient was added and never summed."""
        if set(self.shares) - self.summed:
            raise Untraceable("a share of a gradient would be lost")

    def _write(self, out: Ref, shares: Sequence[tuple[Ref, Share | Term]]) -> None:
        ranges: dict[tuple[int, int], list[Share | Term]] = {}
        for to, share in shares:
            ranges.setdefault((to.start, to.rows), []).append(share)
        if not tile_exactly(ranges, out.rows):
            self._sum(out, ranges.pop((0, out.rows), []))
            ranges = {(start, rows): [out.part(start, rows), *own] for (start, rows), own in ranges.items()}
        for (start, rows), own in ranges.items():
            self._sum(out.part(start, rows), own)

    def _sum(self, out: Ref, shares: Sequence[Share | Term]) -> None:
        """out = the sum of shares; `out` itself may be one of them."""
        tiles = [share for share in shares if isinstance(share, Ref)]
        terms = tuple(share for share in shares if isinstance(share, tuple) and len(share) == 2)
        maps = [share for share in shares if isinstance(share, tuple) and len(share) == 3]
        steps: list[Share] = [*tiles, *maps]
        total: Ref | None = None
        for number, share in enumerate(steps, 1):
            total = self.accumulate(total, share, out if number == len(steps) and not terms else None)
        if terms:
            self.operations.append(Product(out, terms, addend=total, transposed=True))
        elif total is None:
            self.emit("zero", out=out)
        elif total != out:
            self.emit("copy", (total,), out=out)


def tile_exactly(ranges: Iterable[tuple[int, int]], rows: int) -> bool:
    """Whether ranges (start, rows) cover all rows and none twice."""
    end = 0
    for start, count in sorted(ranges):
        if start != end:
            return False
        end += count
    return end == rows
