"""Buffer reuse: gradients that may overwrite dead values of the forward pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from weightspace.rollout.native.derive.adjoint import Adjoint
from weightspace.rollout.native.derive.backward import tile_exactly
from weightspace.rollout.native.trace.program import BackwardOperation, Map, Program, SumInto


def reused(program: Program, back: Adjoint, rows: Mapping[int, int], recorded: Collection[int]) -> dict[int, list[int]]:
    """Gradients that those of weights need -> the recorded values, one after another, whose rows they can take.

    Such a gradient is written part by part; a part takes the rows of a value that is last read by the operation that
    writes the part, or by an earlier one. States, which the next step reads, and what matrices are multiplied by stay.
    Gradients that the readout leaves are not among them: it is not run at every step.
    """
    kept = {ref.value for ref in program.states.values()}
    kept |= {weight.x.value for weight in (*back.readout_weights, *back.step_weights) if weight.x is not None}
    last = {ref.value: number for number, operation in enumerate(back.step) for ref in operation.reads}
    free = {value: last.get(value, -1) for value in recorded if value not in kept}
    elsewhere = {ref.value for part in (back.carry, back.next_carry, back.inputs) for ref in part.values()}
    found: dict[int, list[int]] = {}
    for gradient in dict.fromkeys(weight.dy.value for weight in back.step_weights if weight.dy.value not in elsewhere):
        places: dict[int, int] = {}
        parts = _parts(gradient, back.step)
        if not tile_exactly([(start, size) for start, size, _ in parts], rows[gradient]):
            # Ranges that overlap are written several times, the first time perhaps while the memory is still read.
            continue
        for start, size, number in parts:
            # Element by element, an operation can write where it reads.
            until = number if isinstance(back.step[number], Map) else number - 1
            dead = [value for value, end in free.items() if end <= until and rows[value] == size]
            unused = [value for value in dead if value not in places.values()]
            if unused:
                places[start] = unused[0]
        if len(places) == len(parts):
            found[gradient] = [places[start] for start in sorted(places)]
            free = {value: end for value, end in free.items() if value not in places.values()}
    return found


def _parts(value: int, operations: Sequence[BackwardOperation]) -> list[tuple[int, int, int]]:
    """First row, number of rows, and number of the first operation that writes it, of each part of a value."""
    parts: dict[tuple[int, int], int] = {}
    for number, operation in enumerate(operations):
        if not isinstance(operation, SumInto) and operation.out.value == value:
            parts.setdefault((operation.out.start, operation.out.rows), number)
    return [(start, size, number) for (start, size), number in parts.items()]
