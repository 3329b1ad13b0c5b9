"""Layout of the tiles of a program in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weightspace.rollout.native.derive.adjoint import Adjoint
from weightspace.rollout.native.derive.deferred import Deferred
from weightspace.rollout.native.engine.records import SPACES, Place
from weightspace.rollout.native.engine.reuse import reused
from weightspace.rollout.native.trace.program import BackwardOperation, Program, Ref, SumInto

SpaceRow = tuple[str, int]
"""A space and a row of it."""


@dataclass
class Layout:
    """A program in memory: places are (space, row), sizes are rows of LANES numbers."""

    place: dict[int, SpaceRow] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPACES, 0))
    carried_in_ring: int = 0
    """First rows of the ring, which hold gradients of states."""

    def put(self, value: int, space: str, rows: int) -> None:
        """Assign the next free rows of a space to a value that has none."""
        if value not in self.place:
            self.place[value] = (space, self.sizes[space])
            self.sizes[space] += rows

    def at(self, ref: Ref) -> Place:
        """Space and row of a reference."""
        space, row = self.place[ref.value]
        return Place(SPACES.index(space), row + ref.start)


def laid_out(
    program: Program, back: Adjoint | None, rows: Mapping[int, int], deferring: Deferred | None = None
) -> Layout:
    """Layout of every value of a program and of its adjoint, if there is one."""
    layout = Layout()
    for name, ref in program.states.items():
        layout.put(ref.value, "record", ref.rows)
        layout.place[program.inputs[f"state.{name}"].value] = ("previous", layout.place[ref.value][1])
    for name, ref in program.inputs.items():
        if not name.startswith("state."):
            layout.put(ref.value, "input", ref.rows)
    written = {operation.out.value for operation in program.step}
    later = {ref.value for operation in program.readout for ref in operation.reads} | {program.output.value}
    later |= back.read if back is not None else set()
    recorded = sorted(written & later)
    if back is not None:
        _put_together(layout, reused(program, back, rows, recorded), rows)
    for value in recorded:
        layout.put(value, "record", rows[value])
    if back is not None:
        _put_gradients(layout, program, back, rows)
        for name, ref in deferring.later.items() if deferring is not None else ():
            space, row = layout.place[back.carry[name].value]
            # Of two places of a carry that take turns, the later step's is the next one of the earlier step.
            layout.place[ref.value] = ({"ring": "later_ring", "carry": "next_carry"}[space], row)
    _put_scratch(layout, program.step, rows)
    fixed = [program.output.value]
    for value in (*fixed, *([back.output.value] if back else [])):
        layout.put(value, "scratch", rows[value])
    backward = (*back.readout, *back.step) if back is not None else ()
    _put_scratch(layout, (*program.readout, *backward), rows)
    return layout


def _put_together(layout: Layout, groups: Mapping[int, Sequence[int]], rows: Mapping[int, int]) -> None:
    """Recorded values side by side where one gradient takes the rows of them all."""
    for gradient, values in groups.items():
        for value in values:
            layout.put(value, "record", rows[value])
        layout.place[gradient] = layout.place[values[0]]


def _put_gradients(layout: Layout, program: Program, back: Adjoint, rows: Mapping[int, int]) -> None:
    factors = {weight.dy.value for weight in back.step_weights}
    for name, ref in back.carry.items():
        space = "ring" if ref.value in factors else "carry"
        layout.put(ref.value, space, ref.rows)
        layout.place[back.next_carry[name].value] = (f"next_{space}", layout.place[ref.value][1])
    layout.carried_in_ring = layout.sizes["ring"]
    for name, ref in back.inputs.items():
        layout.place[ref.value] = ("input_gradient", layout.place[program.inputs[name].value][1])
    for weight in (*back.readout_weights, *back.step_weights):
        # Gradients of weights are computed for many steps at once, so both factors must be kept.
        for ref in (weight.dy, *([weight.x] if weight.x else [])):
            layout.put(ref.value, "ring", rows[ref.value])


def _put_scratch(layout: Layout, operations: Sequence[BackwardOperation], rows: Mapping[int, int]) -> None:
    """Assign rows to all other values; values that are not needed at the same time share rows."""
    last: dict[int, int] = {}
    for number, operation in enumerate(operations):
        written = [] if isinstance(operation, SumInto) else [operation.out]
        for ref in (*operation.reads, *written):
            last[ref.value] = number
    first_free, busy, free = layout.sizes["scratch"], dict[int, SpaceRow](), list[tuple[int, int]]()
    end = first_free
    for number, operation in enumerate(operations):
        if not isinstance(operation, SumInto) and operation.out.value not in layout.place:
            value, size = operation.out.value, rows[operation.out.value]
            fitting = sorted((room, row) for row, room in free if room >= size)
            if fitting:
                room, row = fitting[0]
                free.remove((row, room))
                if room > size:
                    free.append((row + size, room - size))
            else:
                row, end = end, end + size
            layout.place[value] = busy[value] = ("scratch", row)
        for value in [value for value in busy if last[value] == number]:
            free.append((busy.pop(value)[1], rows[value]))
    layout.sizes["scratch"] = max(end, layout.sizes["scratch"])
