"""Label columns of a zoo's table as targets: their numbers, bounds, and whether untrained snapshots count."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from weightspace.components.discovery import refuse_unknown_name

NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """Base of targets: a label column, bounds in the label's unit, and `trained_only`, to leave out step 0."""

    name: str
    low: float = -math.inf
    high: float = math.inf
    trained_only: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Target '{self.name}' is clipped to [{self.low}, {self.high}]; low must be below high.")

    def numbers(self, table: pa.Table) -> np.ndarray:
        """Labels (rows) float64, NaN where there is none; ValueError where the column holds no numbers."""
        column = table.column(self.name)
        if not any(is_number(column.type) for is_number in NUMBERS):
            raise ValueError(f"The column '{self.name}' of the zoo's table holds {column.type}, expected numbers.")
        values: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return values

    def left_out(self, table: pa.Table) -> np.ndarray:
        """Mask (rows) of snapshots that do not count: those of step 0, if trained ones alone do."""
        mask: np.ndarray = (table.column("step").to_numpy(zero_copy_only=False) == 0) & self.trained_only
        return mask


def refuse_missing_column(name: str, columns: Sequence[str], zoo: str | Path) -> None:
    """Raise ValueError, with the command that may add it, unless a zoo's table has the column `name`."""
    command = f"zoo-builder label {shlex.quote(str(zoo))} --labels {shlex.quote(name)}"
    hint = f" A label that was not measured is added by `{command}`."
    refuse_unknown_name("column of the zoo", name, columns, hint)
