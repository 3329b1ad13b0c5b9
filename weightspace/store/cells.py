"""Cells of a zoo: rows of one family with its config, size, class of task and step, and the means of their labels."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

TASK_SIZES = ("input_size", "output_size", "start_size")
"""Sizes that follow from the task's parameters, which may vary inside a cell."""


def codes(keys: Iterable[Hashable]) -> np.ndarray:
    """Integer codes (rows) of keys, in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def stratum_codes(table: pa.Table) -> np.ndarray:
    """Codes (rows) of strata: cells whatever the step."""
    return codes(_strata(table))


def cell_codes(table: pa.Table) -> np.ndarray:
    """Codes (rows) of cells: one family with its config, hidden size, class of task, and step."""
    return codes(zip(_strata(table), table.column("step").to_pylist(), strict=True))


def cell_means(values: np.ndarray, cells: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Mean value (rows) of the cell of each row over the rows `train` (a mask or numbers), NaN where it has none."""
    counts = np.bincount(cells[train], minlength=cells.max() + 1)
    sums = np.bincount(cells[train], weights=values[train], minlength=cells.max() + 1)
    means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)[cells]
    return means


def read_config(column: str, text: Any) -> dict[str, Any]:
    """The JSON object in a column of models.parquet, empty where it is null; ValueError for anything else."""
    try:
        fields = json.loads(text or "{}")
    except (ValueError, TypeError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"The column '{column}' of the zoo's table holds {str(text)[:60]!r}, expected a JSON object.")
    return fields


def _strata(table: pa.Table) -> list[tuple[Any, ...]]:
    family, text, size, task = (
        table.column(name).to_pylist() for name in ("family", "family_config", "hidden_size", "task")
    )
    configs = {config: _without_task_sizes(config) for config in set(text)}
    return list(zip(family, [configs[config] for config in text], size, task, strict=True))


def _without_task_sizes(config: str) -> str:
    fields = read_config("family_config", config)
    return json.dumps({key: value for key, value in fields.items() if key not in TASK_SIZES}, sort_keys=True)
