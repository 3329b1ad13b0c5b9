"""Attributions of a prediction as pictures: heat maps of tensors, bars for units, the largest weights."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.image import imsave

from probes.attribution import Attribution
from probes.problem import Rows
from weightspace.rows import RowSpec, row_specs

NUM_LARGEST = 5
DESCRIBED = ("model_id", "family", "task", "hidden_size", "step")
PIXELS = (2, 14, 220)
"""Least and largest size of an entry on the page, and the size that a picture has where both allow it, in pixels."""


def pictured(attributions: Sequence[Attribution], rows: Rows) -> list[dict[str, Any]]:
    """For each attribution, its model, sums over tensors and units, heat maps on one scale, and the largest weights."""
    return [_pictured(attribution, rows) for attribution in attributions]


def _pictured(attribution: Attribution, rows: Rows) -> dict[str, Any]:
    record: dict[str, Any] = {name: rows.column(name)[attribution.row] for name in DESCRIBED}
    specs = [row for row in row_specs(attribution.spec, attribution.tensors) if len(row.nodes) <= 2]
    values = {row.label: _values(attribution, row) for row in specs}
    scale = max((float(np.abs(value).max()) for value in values.values() if value.size), default=0.0)
    units = {axis: sums.double().cpu().numpy() for axis, sums in attribution.units.items()}
    return {
        **record,
        "target": attribution.target,
        "features": attribution.features,
        "metric": attribution.metric,
        "method": attribution.method,
        "value": attribution.value,
        "true": attribution.true,
        "prediction": attribution.prediction,
        "scale": scale,
        "tensors": [(name, float(tensor.double().sum())) for name, tensor in attribution.tensors.items()],
        "maps": [_map(row, values[row.label], scale) for row in specs],
        "units": [_units(axis, sums) for axis, sums in units.items()],
        "largest": _largest(values),
    }


def _values(attribution: Attribution, row: RowSpec) -> np.ndarray:
    """Attributed values of one row of a tensor, along its node axes."""
    tensor = attribution.tensors[row.tensor].double().cpu().numpy()
    chosen: np.ndarray = tensor[row.index] if attribution.spec.channel_axis(row.tensor) is not None else tensor
    return chosen


def _map(row: RowSpec, values: np.ndarray, scale: float) -> dict[str, Any]:
    """A heat map (to, from), a vector being one column: a picture of one pixel for each entry."""
    matrix = values.reshape(len(values), -1)
    to, *origin = row.nodes
    return {
        "label": row.label,
        "axes": f"{to} × {origin[0]}" if origin else to,
        "height": matrix.shape[0],
        "width": matrix.shape[1],
        "entry": max(PIXELS[0], min(PIXELS[1], PIXELS[2] // max(matrix.shape))),
        "total": float(values.sum()),
        "png": png(matrix, scale),
    }


def png(matrix: np.ndarray, scale: float) -> str:
    """A matrix as the base64 text of a PNG, blue below 0, white at 0, red above, full colour at the scale."""
    colours = colormaps["RdBu_r"](0.5 + 0.5 * matrix / scale if scale > 0 else np.full(matrix.shape, 0.5))
    buffer = io.BytesIO()
    imsave(buffer, colours, format="png", metadata={"Software": "probes"})
    return base64.b64encode(buffer.getvalue()).decode()


def _units(axis: str, sums: np.ndarray) -> dict[str, Any]:
    """Sums by unit, and each as a share of the largest, for bars."""
    largest = float(np.abs(sums).max()) or 1.0
    return {"axis": axis, "sums": sums.tolist(), "shares": (sums / largest).tolist()}


def _largest(values: dict[str, np.ndarray]) -> list[tuple[str, float]]:
    """The connections with the largest share in the prediction, each as LABEL[to, from], with its signed value."""
    entries = [
        (f"{label}[{', '.join(map(str, np.unravel_index(i, value.shape)))}]", float(value.flat[i]))
        for label, value in values.items()
        for i in np.argsort(-np.abs(value), axis=None)[:NUM_LARGEST]
    ]
    return sorted(entries, key=lambda entry: -abs(entry[1]))[:NUM_LARGEST]
