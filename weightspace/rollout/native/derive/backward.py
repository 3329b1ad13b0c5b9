"""Gradients of values in the adjoint: shares are collected until all readers of a value are done, then summed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from weightspace.rollout.native.derive.derivatives import PARTIALS, Derivation, LazyMap, Share
from weightspace.rollout.native.trace.program import (
    Addend,
    BackwardOperation,
    Map,
    Matrix,
    Operation,
    Ref,
    SumInto,
    Term,
    Untraceable,
    WeightGradient,
)

WITH_PRODUCTS = ("sigmoid", "tanh")
"""Maps whose gradient and a product of two tiles are computed in one pass."""


@dataclass(kw_only=True)
class Backward(Derivation):
    """Collector of the shares of every value's gradient, which writes their sum once all readers are done."""

    operations: list[BackwardOperation] = field(default_factory=list)
    weights: list[WeightGradient] = field(default_factory=list)
    shares: dict[int, list[tuple[Ref, Share | Term]]] = field(default_factory=dict)
    found: dict[int, Ref | None] = field(default_factory=dict)
    summed: set[int] = field(default_factory=set)
    """Values whose shares have been summed."""

    @property
    def read(self) -> set[int]:
        """Values that its operations and the gradients of weights read."""
        refs = [ref for operation in self.operations for ref in operation.reads]
        return {ref.value for ref in (*refs, *(one.x for one in self.weights if one.x is not None))}

    def add(self, to: Ref, share: Share | Term) -> None:
        """Add a share of the gradient of some rows, unless gradients stop there; a term is of a transposed matrix."""
        if to.stopped:
            return
        if to.value in self.summed:
            raise Untraceable("a gradient would be summed before all its shares are known")
        self.shares.setdefault(to.value, []).append((to, share))

    def through(self, operation: Operation) -> None:
        """Carry the gradient through one operation, all of whose readers are done."""
        if isinstance(operation, Map) and operation.function in WITH_PRODUCTS and self._through_product(operation):
            return
        dy = self.gradient(operation.out)
        if dy is None:
            return
        if isinstance(operation, Map):
            self._through_map(operation, dy)
            return
        for matrix, tile in operation.terms:
            self.add(tile, Term(matrix, dy))
            self.weights.append(WeightGradient(matrix, dy, tile))
        if operation.bias is not None:
            self.weights.append(WeightGradient(operation.bias, dy, None))
        for addend in operation.addends:
            if addend.vector is not None:
                self.operations.append(SumInto(addend.vector, dy, addend.tile, addend.scale))
            self.add(addend.tile, dataclasses.replace(addend, tile=dy))

    def _through_map(self, operation: Map, dy: Ref) -> None:
        for arg, partial in zip(operation.args, PARTIALS[operation.function], strict=True):
            share = partial(self, operation, dy)
            if isinstance(arg, Ref):
                self.add(arg, share)
            else:
                assert share == Addend(dy) or (isinstance(share, LazyMap) and share.function == "mul")
                factor = None if isinstance(share, Addend) else share.args[1]
                assert not isinstance(factor, Matrix)
                self.operations.append(SumInto(arg, dy, factor))

    def _through_product(self, operation: Map) -> bool:
        """Whether the gradient of the result is one product of tiles, so that one pass computes both."""
        shares = self.shares.get(operation.out.value, [])
        whole = Ref(operation.out.value, 0, self.builder.rows[operation.out.value])
        if operation.out != whole or len(shares) != 1 or shares[0][0] != whole:
            return False
        share = shares[0][1]
        if not isinstance(share, LazyMap) or share.function != "mul":
            return False
        (argument,) = operation.reads
        self.summed.add(whole.value)
        self.add(argument, LazyMap(f"{operation.function}_grad_of_product", (*share.args, operation.out)))
        return True

    def gradient(self, of: Ref) -> Ref | None:
        """Reference to the gradient of some rows of a value, None if nothing depends on the value."""
        whole = Ref(of.value, 0, self.builder.rows[of.value])
        if of.value not in self.found:
            self.summed.add(of.value)
            self.found[of.value] = self._gradient(whole)
        shares = self.found[of.value]
        return None if shares is None else shares.part(of.start, of.rows)

    def _gradient(self, whole: Ref) -> Ref | None:
        shares = self.shares.get(whole.value, [])
        if not shares:
            return None
        if len(shares) == 1 and shares[0][0] == whole:
            share = shares[0][1]
            if isinstance(share, Addend) and share == Addend(share.tile):
                return share.tile
        out = self.builder.value(whole.rows)
        self._write(out, shares)
        return out

    def finish(self, value: int, out: Ref) -> None:
        """Write the gradient of a whole value to `out`."""
        self.summed.add(value)
        shares = self.shares.get(value, [])
        if shares != [(Ref(value, 0, out.rows), Addend(out))]:
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
            ranges = {(start, rows): [Addend(out.part(start, rows)), *own] for (start, rows), own in ranges.items()}
        for (start, rows), own in ranges.items():
            self._sum(out.part(start, rows), own)

    def _sum(self, out: Ref, shares: Sequence[Share | Term]) -> None:
        """out = the sum of shares; `out` itself may be one of them."""
        terms = tuple(share for share in shares if isinstance(share, Term))
        self.write(out, [share for share in shares if not isinstance(share, Term)], terms, transposed=True)


def tile_exactly(ranges: Iterable[tuple[int, int]], rows: int) -> bool:
    """Whether ranges (start, rows) cover all rows and none twice."""
    end = 0
    for start, count in sorted(ranges):
        if start != end:
            return False
        end += count
    return end == rows
