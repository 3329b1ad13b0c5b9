"""Learning curves: the validation loss and metrics that trainings have logged, by updates and by CPU time."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LOG, CPU_MINUTES = "metrics.csv", "cpu_minutes"
MEANS = {"val/r2_within_cell.": "mean within-cell R² on validation models"}
LOSS = "validation loss"


@dataclass(frozen=True)
class Curve:
    """One training's values (evaluations) of a metric, with the updates and CPU minutes that it had by then.

    cpu_minutes is None where the log does not have them, as of trainings by earlier versions.
    """

    name: str
    seed: int
    objective: str
    part: str
    metric: str
    updates: list[int]
    cpu_minutes: list[float] | None
    values: list[float]


def read_curves(log: Path, name: str, seed: int, objective: str, part: str) -> list[Curve]:
    """The curves of a log of `weightspace fit`: its validation loss, and means of the metrics of several targets.

    Evaluations without a finite value are left out; there is no curve where there is no log or no validation.
    """
    if not log.is_file():
        return []
    with log.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line.get("val/loss")]
    curves = []
    for metric, columns in _metrics(lines[0] if lines else {}).items():
        read = [(line, _mean([line.get(column) for column in columns])) for line in lines]
        known = [(line, value) for line, value in read if value is not None]
        times = [_number(line.get(CPU_MINUTES)) for line, _ in known]
        timed = [time for time in times if time is not None]
        if known:
            curves.append(
                Curve(
                    name=name,
                    seed=seed,
                    objective=objective,
                    part=part,
                    metric=metric,
                    # Steps are counted from 0 in the log.
                    updates=[1 + int(line["step"]) for line, _ in known],
                    cpu_minutes=timed if len(timed) == len(known) else None,
                    values=[value for _, value in known],
                )
            )
    return curves


def _metrics(line: Mapping[str, str]) -> dict[str, list[str]]:
    """Columns of a log by the metric that they are averaged to."""
    means = {title: [column for column in line if column.startswith(prefix)] for prefix, title in MEANS.items()}
    return {LOSS: ["val/loss"]} | {title: columns for title, columns in means.items() if columns}


def _mean(texts: Sequence[str | None]) -> float | None:
    numbers = [_number(text) for text in texts]
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if len(known) == len(texts) else None


def _number(text: str | None) -> float | None:
    number = float(text) if text else math.nan
    return number if math.isfinite(number) else None
