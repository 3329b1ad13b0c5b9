"""Targets of training: bounded values of the table's label columns, and the means of their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from weightspace.components.discovery import check_fields, refuse_unknown_fields
from weightspace.store import LabelColumn, cell_codes, cell_means, refuse_missing_column

LARGEST = 1e30
"""Largest number that counts: batches hold labels in float32, where differences of much larger ones are infinite."""


@dataclass(frozen=True, kw_only=True)
class Target(LabelColumn):
    """A label to learn, in the label's unit.

    Values are clipped to [low, high], and further to the training quantiles `quantile` and 1 - `quantile`: a few
    outliers would otherwise dominate a squared loss. `trained_only` leaves out snapshots of step 0.
    """

    quantile: float = 0.005

    @classmethod
    def of(cls, target: str | Mapping[str, Any] | Target) -> Target:
        """The target with this name, or with these fields."""
        if isinstance(target, Target):
            return target
        fields = {"name": target} if isinstance(target, str) else target
        if not isinstance(fields, Mapping) or "name" not in fields:
            raise ValueError(f"A target is a label's name or a dict with its `name`, not {target!r}.")
        refuse_unknown_fields(cls, fields)
        check_fields(cls, fields)
        return cls(**fields)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.quantile < 0.5:
            raise ValueError(f"Target '{self.name}' has quantile {self.quantile}; expected one in [0, 0.5).")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """values, cell_means (rows, target) float64: NaN where a label does not apply or training never saw the cell."""

    values: np.ndarray
    cell_means: np.ndarray


def read_labels(
    table: pa.Table, targets: Sequence[Target], train: np.ndarray, zoo: str | Path = "ZOO"
) -> Labels:
    """Labels of all rows, with bounds and cell means learned from the rows of the mask `train` (rows) alone.

    ValueError where the table, that of the folder `zoo`, lacks one.
    """
    cells = cell_codes(table)
    values = np.empty((table.num_rows, len(targets)))
    means = np.empty_like(values)
    for index, target in enumerate(targets):
        refuse_missing_column(target.name, table.column_names, zoo)
        values[:, index] = _bounded(_column(table, target), target, train)
        means[:, index] = cell_means(values[:, index], cells, train & ~np.isnan(values[:, index]))
    return Labels(values=values, cell_means=means)


def _column(table: pa.Table, target: Target) -> np.ndarray:
    values = target.numbers(table)
    usable = np.isfinite(values) & (np.abs(np.clip(values, target.low, target.high)) <= LARGEST)
    return np.where(usable & ~target.left_out(table), values, np.nan)


def _bounded(values: np.ndarray, target: Target, train: np.ndarray) -> np.ndarray:
    training_values = values[train & ~np.isnan(values)]
    if len(training_values) < 2:
        raise ValueError(
            f"Target '{target.name}' has {len(training_values)} values among the training rows; 2 are needed."
        )
    training_values = np.clip(training_values, target.low, target.high)
    low, high = np.quantile(training_values, [target.quantile, 1 - target.quantile])
    clipped: np.ndarray = np.clip(values, low, high)
    return clipped
