"""Layout of a flat program in the engine's PARAMS, and its operations as the numbers of engine.c."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from weightspace.rollout.native.derive.prologue_adjoint import PrologueAdjoint
from weightspace.rollout.native.engine.records import OPCODES, SPACES, Instruction, Place, table
from weightspace.rollout.native.trace.flat import Load, Prologue, Step
from weightspace.rollout.native.trace.program import Map


@dataclass
class FlatLayout:
    """Layout of flat values one after another, each from the start of a row of LANES numbers."""

    lanes: int
    sizes: Mapping[int, int]
    """Value -> its number of elements."""
    constants: list[float]
    """Constants of all programs of a job; more are added."""
    tables: list[int] = field(default_factory=list)
    rows: int = 0
    _at: dict[int, int] = field(default_factory=dict)

    def height(self, value: int) -> int:
        """Number of rows of a value."""
        return -(-self.sizes[value] // self.lanes)

    def at(self, value: int) -> int:
        """The first row of a value."""
        if value not in self._at:
            self._at[value] = self.room(self.sizes[value])
        return self._at[value]

    def room(self, count: int) -> int:
        """First of the further rows for `count` elements."""
        first = self.rows
        self.rows += -(-count // self.lanes)
        return first

    def instructions(self, steps: Iterable[Step]) -> np.ndarray:
        """Operations as rows of numbers."""
        return table([self._instruction(step) for step in steps], Instruction)

    def _instruction(self, step: Step) -> Instruction:
        constant, first, count = 0, 0, 0
        if isinstance(step, Map):
            name, reads = step.function, [ref.value for ref in step.reads]
            if step.constants:
                constant = len(self.constants)
                self.constants += [*step.constants, 0.0][:2]
        elif isinstance(step, Load):
            name, reads, constant, count = "load", [], len(self.constants), len(step.numbers)
            self.constants += step.numbers
        else:
            name, reads = type(step).__name__.lower(), [step.source.value]
            first, count = len(self.tables), len(step.table)
            self.tables += step.table
        # Unused operands alias the output, so that every address is valid.
        reads += [step.out.value] * (3 - len(reads))
        out, a, b, c = (Place(SPACES.index("params"), self.at(value)) for value in (step.out.value, *reads))
        return Instruction(OPCODES.index(name), self.height(step.out.value), out, a, b, c, constant, first, count)


def prologue_fields(
    prologue: Prologue, adjoint: PrologueAdjoint, num_stored: int, layout: FlatLayout
) -> dict[str, np.ndarray]:
    """The fields of a job that describe a prologue."""
    stored, results = range(num_stored), range(len(prologue.results))
    at = {number: layout.at(ref.value) for number, ref in prologue.params.items()}
    fields = {
        "prologue": layout.instructions(prologue.operations),
        "prologue_back": layout.instructions(adjoint.operations),
        "param_at": [at.get(number, -1) for number in stored],
        "param_gradient_at": [
            layout.at(adjoint.params[number].value) if number in adjoint.params else -1 for number in stored
        ],
        "result_at": [layout.at(ref.value) for ref in prologue.results],
        "result_gradient_at": [
            layout.at(adjoint.results[number].value) if number in adjoint.results else -1 for number in results
        ],
        "result_rows": [layout.height(ref.value) for ref in prologue.results],
        "tables": layout.tables,
    }
    return {name: np.array(value, dtype=np.int64) for name, value in fields.items()}
