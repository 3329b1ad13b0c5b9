"""Proof that a program reads only what was written before, and that its adjoint uses every share of a gradient once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weightspace.rollout.native.derive.adjoint import Adjoint
from weightspace.rollout.native.derive.deferred import Deferred
from weightspace.rollout.native.trace.program import BackwardOperation, Program, Ref, SumInto, Untraceable


class Written:
    """Written rows of every value, a bit each."""

    def __init__(self, rows: Mapping[int, int], masks: Mapping[int, int] | None = None) -> None:
        self._rows, self._masks = rows, dict(masks or {})

    def copy(self) -> Written:
        """Copy of the rows, to which further ones can be added."""
        return Written(self._rows, self._masks)

    def write(self, ref: Ref) -> None:
        """Mark some rows as written."""
        if ref.start < 0 or ref.rows < 1 or ref.start + ref.rows > self._rows[ref.value]:
            raise Untraceable(f"a program would write rows {ref.start} to {ref.start + ref.rows} of a smaller value")
        self._masks[ref.value] = self._masks.get(ref.value, 0) | ref.mask

    def is_written(self, ref: Ref) -> bool:
        """Whether any of these rows are written."""
        return bool(self._masks.get(ref.value, 0) & ref.mask)

    def read(self, ref: Ref) -> None:
        """Raise Untraceable unless all of these rows are written."""
        if ref.mask & ~self._masks.get(ref.value, 0):
            raise Untraceable("a program would read a value before it is computed")

    def run(self, operations: Iterable[BackwardOperation], *, once: bool) -> None:
        """Check operations in order; with `once`, no row may be written twice."""
        for operation in operations:
            for ref in operation.reads:
                self.read(ref)
            if isinstance(operation, SumInto):
                continue
            if once and self.is_written(operation.out):
                raise Untraceable("a program would compute a value twice")
            self.write(operation.out)


def refuse_unsound(
    program: Program,
    rows: Mapping[int, int],
    back: Adjoint | None = None,
    deferring: Deferred | None = None,
    *,
    once: bool,
) -> None:
    """Raise Untraceable unless everything a program reads, and its adjoint, is computed before; with `once`, only once.

    Tangents are summed in place, so that programs with tangents compute some rows several times.
    """
    states = {ref.value for ref in program.states.values()}
    if len(states) < len(program.states) or states & {ref.value for ref in program.inputs.values()}:
        raise Untraceable("two states of a program would share one memory")
    step = Written(rows)
    for ref in program.inputs.values():
        step.write(ref)
    step.run(program.step, once=once)
    for ref in program.states.values():
        step.read(Ref(ref.value, 0, rows[ref.value]))
    both = step.copy()
    both.run(program.readout, once=once)
    both.read(program.output)
    if back is not None and deferring is not None:
        _refuse_unsound_deferral(step.copy(), both.copy(), back, deferring)
    if back is not None:
        _refuse_unsound_adjoint(step, both, back)


def _refuse_unsound_adjoint(step: Written, both: Written, back: Adjoint) -> None:
    """Check an adjoint: its step runs without the read-out's part wherever outputs have no gradient."""
    for written in (step, both):
        for ref in back.carry.values():
            written.write(ref)
    both.write(back.output)
    both.run(back.readout, once=False)
    for weight in back.readout_weights:
        both.read(weight.dy)
        if weight.x is not None:
            both.read(weight.x)
    first, lasts = step.copy(), [step.copy() for _ in back.last_steps]
    first.run(back.first_step, once=False)
    for last, operations in zip(lasts, back.last_steps, strict=True):
        last.run(operations, once=False)
    step.run(back.step, once=False)
    for weight in back.step_weights:
        for ran in (step, first, *lasts[weight.silent_steps :]):
            ran.read(weight.dy)
            if weight.x is not None:
                ran.read(weight.x)
    for ref in back.inputs.values():
        for ran in (step, first, *lasts):
            ran.read(ref)
    if back.step:
        for ref in back.next_carry.values():
            for ran in (step, *lasts):
                ran.read(ref)


def _refuse_unsound_deferral(step: Written, both: Written, back: Adjoint, deferring: Deferred) -> None:
    """Check that what a step no longer carries to the step before is written by the read-out there."""
    for ref in back.carry.values():
        step.write(ref)
    step.run(deferring.step, once=False)
    for ref in (*back.inputs.values(), *(weight.dy for weight in back.step_weights)):
        step.read(ref)
    for name, ref in back.next_carry.items():
        both.write(deferring.later[name])
        if step.is_written(ref):
            both.write(back.carry[name])
    both.write(back.output)
    both.run(deferring.readout, once=False)
    for ref in (*back.carry.values(), *(weight.dy for weight in back.readout_weights)):
        both.read(ref)
