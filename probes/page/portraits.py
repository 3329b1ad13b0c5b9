"""Portraits of the models of a small zoo: their labels with units, and the eigenvalues of their recurrent matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from weightspace.features import eigenvalues_of
from weightspace.store import Zoo

MOST_SHOWN = 12
"""Rows of a zoo that are small enough to be read one by one."""
DESCRIBED = ("family", "hidden_size", "num_parameters", "task")
MARGIN = 1.08


def portraits(zoo: Zoo) -> dict[str, Any] | None:
    """Names of the rows, lines of records and labels (name, unit, text by row) and eigenvalues; None of a large zoo."""
    if zoo.num_rows > MOST_SHOWN:
        return None
    table = zoo.table
    records = [(name, "", table.column(name).to_pylist()) for name in DESCRIBED]
    measured = zoo.manifest["labels"].items()
    labels = [(name, str(label["unit"]), table.column(name).to_pylist()) for name, label in measured]
    return {
        "names": _names(zoo),
        "records": [_line(*record) for record in records if any(value is not None for value in record[2])],
        "labels": [_line(*label) for label in labels if any(value is not None for value in label[2])],
        "spectra": _spectra(zoo),
    }


def _names(zoo: Zoo) -> list[str]:
    """Names of the rows: of the model, and of the snapshot where models have several."""
    models, steps = (zoo.table.column(name).to_pylist() for name in ("model_id", "step"))
    alone = len(set(models)) == len(models)
    return [str(name) if alone else f"{name}, step {step}" for name, step in zip(models, steps, strict=True)]


def _line(name: str, unit: str, values: list[Any]) -> tuple[str, str, list[str]]:
    return name, unit, [_text(value) for value in values]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _spectra(zoo: Zoo) -> list[list[dict[str, Any]]]:
    """For each row a picture of each recurrent matrix and gate row; none of a model whose weights are not finite."""
    pictures: list[list[dict[str, Any]]] = [[] for _ in range(zoo.num_rows)]
    for stack in zoo.stacks(max_models=MOST_SHOWN):
        spec, params = stack.effective
        usable = stack.finite
        if not usable.any():
            continue
        kept = {name: tensor[usable] for name, tensor in params.items()}
        for label, values in eigenvalues_of(spec, kept).items():
            for row, spectrum in zip(stack.rows[usable].tolist(), values.numpy(), strict=True):
                pictures[row].append(_picture(label, spectrum))
    return pictures


def _picture(label: str, eigenvalues: np.ndarray) -> dict[str, Any]:
    """Points (unit) of the complex plane as a path of dots, imaginary part up, and half the width of the picture."""
    largest = float(np.abs(eigenvalues).max())
    points = (f"M{value.real:.3f} {-value.imag:.3f}h0" for value in eigenvalues.tolist())
    return {"label": label, "path": "".join(points), "largest": largest, "reach": MARGIN * max(1.0, largest)}
