"""Targets of training: bounded values of the table's label columns, and the means of their cells."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from weightspace.components.discovery import check_fields, refuse_unknown_fields, refuse_unknown_name


@dataclass(frozen=True, kw_only=True)
class Target:
    """A label to learn, in the label's unit.

    Values are clipped to [low, high], and further to the training quantiles `quantile` and 1 - `quantile`: a few
    outliers would otherwise dominate a squared loss. `trained_only` leaves out snapshots of step 0.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    quantile: float = 0.005
    trained_only: bool = False

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
        if not self.low < self.high:
            raise ValueError(f"Target '{self.name}' is clipped to [{self.low}, {self.high}]; low must be below high.")
        if not 0 <= self.quantile < 0.5:
            raise ValueError(f"Target '{self.name}' has quantile {self.quantile}; expected one in [0, 0.5).")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """values, cell_means (rows, target) float64: NaN where a label does not apply or training never saw the cell."""

    values: np.ndarray
    cell_means: np.ndarray


def read_labels(table: pa.Table, targets: Sequence[Target], train: np.ndarray) -> Labels:
    """Labels of all rows, with bounds and cell means learned from the rows of the mask `train` (rows) alone."""
    cells = cell_codes(table)
    values = np.empty((table.num_rows, len(targets)))
    cell_means = np.empty_like(values)
    for index, target in enumerate(targets):
        values[:, index] = _bounded(_column(table, target), target, train)
        cell_means[:, index] = _means(values[:, index], cells, train)
    return Labels(values=values, cell_means=cell_means)


def cell_codes(table: pa.Table) -> np.ndarray:
    """Integer code (rows) of the cell of each row: family, its config with its sizes, class of task, step."""
    # Input and output sizes are left out: they follow from the task's parameters, which may vary inside a cell.
    configs = {text: _without_ends(text) for text in table.column("family_config").unique().to_pylist()}
    family, task, step = (table.column(name).to_pylist() for name in ("family", "task", "step"))
    config = [configs[text] for text in table.column("family_config").to_pylist()]
    numbers: dict[tuple[Any, ...], int] = {}
    keys = zip(family, config, task, step, strict=True)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _without_ends(config: str) -> str:
    fields = json.loads(config or "{}")
    return json.dumps({k: v for k, v in fields.items() if k not in ("input_size", "output_size")}, sort_keys=True)


def _column(table: pa.Table, target: Target) -> np.ndarray:
    refuse_unknown_name("column of the zoo", target.name, table.column_names)
    column = table.column(target.name)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise ValueError(f"'{target.name}' holds {column.type}, but a target must be a number; choose a label column.")
    values: np.ndarray = column.cast(pa.float64()).to_numpy(zero_copy_only=False).copy()
    values[~np.isfinite(values)] = np.nan
    if target.trained_only:
        values[table.column("step").to_numpy() == 0] = np.nan
    return values


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


def _means(values: np.ndarray, cells: np.ndarray, train: np.ndarray) -> np.ndarray:
    training = train & ~np.isnan(values)
    counts = np.bincount(cells[training], minlength=cells.max() + 1)
    sums = np.bincount(cells[training], weights=values[training], minlength=cells.max() + 1)
    means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    by_row: np.ndarray = means[cells]
    return by_row
