"""Gradients of values that no loss depends on: they are zero, and nothing is multiplied by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from weightspace.rollout.native.derive.adjoint import Adjoint
from weightspace.rollout.native.trace.program import BackwardOperation, Map, Product, Ref, SumInto

PLAIN_SUMS = ("add", "sub")
"""Maps that are right with zeros among their arguments."""
GROWING_SUMS = ("fma", "fma_vector")
"""Maps that add a product to their last argument."""


@dataclass
class Silence:
    """Operations of a step's adjoint without those that would multiply a gradient that is zero for certain.

    A state that no loss depends on may be infinite, and infinity times zero is not zero. Other zeros stay factors, as
    they do in torch.
    """

    rows: dict[int, int] = field(default_factory=dict)
    """Value -> its silent rows, a bit each."""
    operations: list[BackwardOperation] = field(default_factory=list)

    def has(self, ref: Ref) -> bool:
        """Whether all of these rows are silent."""
        return self.rows.get(ref.value, 0) & ref.mask == ref.mask

    def through(self, operations: Iterable[BackwardOperation]) -> None:
        """Take over operations in their order."""
        for operation in operations:
            if isinstance(operation, SumInto):
                if not self.has(operation.a):
                    self.operations.append(operation)
                continue
            kept = self._sum(operation) if isinstance(operation, Product) else self._map(operation)
            mask, before = kept.out.mask, self.rows.get(kept.out.value, 0)
            is_silent = isinstance(kept, Map) and kept.function == "zero"
            self.rows[kept.out.value] = before | mask if is_silent else before & ~mask
            self.operations.append(kept)

    def _sum(self, operation: Product) -> Product | Map:
        terms = tuple(term for term in operation.terms if not self.has(term.tile))
        addends = tuple(addend for addend in operation.addends if not self.has(addend.tile))
        if not terms and not addends and operation.bias is None:
            return Map(operation.out, "zero")
        return dataclasses.replace(operation, terms=terms, addends=addends)

    def _map(self, operation: Map) -> Map:
        first, last = (operation.reads[0], operation.reads[-1]) if operation.reads else (None, None)
        if first is None or last is None or not self.has(first):
            return operation
        if operation.function in GROWING_SUMS and not self.has(last):
            return Map(operation.out, "copy", (last,))
        if operation.function in PLAIN_SUMS and not self.has(last):
            return operation
        return Map(operation.out, "zero")


def silenced(back: Adjoint, *, outputs: bool, states: Collection[str]) -> Adjoint:
    """An adjoint for gradients that come in through the outputs, if said, and through some states.

    The last steps have lists of their own: what acts only on later steps is silent there. Towards earlier steps ever
    more is reached, until nothing changes any more.
    """
    written = {operation.out.value for operation in back.readout if not isinstance(operation, SumInto)}
    sources = {name for name, ref in back.carry.items() if name in states or (outputs and ref.value in written)}
    levels, reached, before = list[Silence](), set[str](), sources
    while not levels or before != reached:
        reached = before
        levels.append(_of_step(back, reached))
        before = sources | {name for name, ref in back.next_carry.items() if not levels[-1].has(ref)}
    steady, dys = levels[-1], {weight.dy for weight in back.step_weights}
    while len(levels) > 1 and _is_like(levels[-2], steady, dys):
        levels.pop()
    weights = tuple(
        dataclasses.replace(weight, silent_steps=sum(level.has(weight.dy) for level in levels[:-1]))
        for weight in back.step_weights
        if not steady.has(weight.dy)
    )
    return dataclasses.replace(
        back,
        readout=back.readout if outputs else (),
        readout_weights=back.readout_weights if outputs else (),
        step=tuple(steady.operations),
        first_step=tuple(steady.operations),
        last_steps=tuple(tuple(level.operations) for level in levels[:-1]),
        step_weights=weights,
        reached=frozenset(name for name, ref in back.next_carry.items() if not steady.has(ref)),
    )


def _of_step(back: Adjoint, reached: Collection[str]) -> Silence:
    """The step's adjoint where gradients come in through what is reached alone."""
    silence = Silence({ref.value: ref.mask for name, ref in back.carry.items() if name not in reached})
    silence.through(back.step)
    return silence


def _is_like(silence: Silence, other: Silence, dys: Collection[Ref]) -> bool:
    return silence.operations == other.operations and all(silence.has(dy) == other.has(dy) for dy in dys)
