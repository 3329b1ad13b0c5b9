"""Line charts of learning curves as SVG whose text is text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from probes.curves import Curve

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40
NUM_COLOURS = 8


def charts(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A chart for each objective, part of the zoo and metric, against updates and, where it is logged, CPU minutes."""
    groups: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.objective, curve.part, curve.metric), []).append(curve)
    return [
        {"objective": objective, "part": part, "metric": metric, "legend": _legend(same), "panels": _panels(same)}
        for (objective, part, metric), same in groups.items()
    ]


def _legend(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Each encoder with its colour, the number of its seeds and the mean of their last values."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    return [
        {
            "name": name,
            "colour": number % NUM_COLOURS,
            "seeds": sum(curve.name == name for curve in curves),
            "last": float(np.mean([curve.values[-1] for curve in curves if curve.name == name])),
        }
        for number, name in enumerate(names)
    ]


def _panels(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    timed = all(curve.cpu_minutes is not None for curve in curves)
    sides = [("updates", [list(map(float, curve.updates)) for curve in curves])]
    if timed:
        sides.append(("CPU minutes", [curve.cpu_minutes or [] for curve in curves]))
    return [_panel(title, x, curves) for title, x in sides]


def _panel(title: str, x: Sequence[Sequence[float]], curves: Sequence[Curve]) -> dict[str, Any]:
    """One set of axes: ticks and polylines in pixels; x (curves, evaluations) beside the curves' values."""
    colours = {name: number % NUM_COLOURS for number, name in enumerate(dict.fromkeys(c.name for c in curves))}
    x_ticks, y_ticks = ticks(0.0, max(map(max, x))), ticks(*_range(curves))
    across = (x_ticks[0], max(x_ticks[-1], max(map(max, x))), LEFT, WIDTH - RIGHT)
    lowest, highest = _range(curves)
    up = (min(y_ticks[0], lowest), max(y_ticks[-1], highest), HEIGHT - BOTTOM, TOP)
    lines = [
        {
            "name": curve.name,
            "seed": curve.seed,
            "colour": colours[curve.name],
            "points": " ".join(f"{at(a, *across):.1f},{at(b, *up):.1f}" for a, b in zip(of, curve.values, strict=True)),
        }
        for of, curve in zip(x, curves, strict=True)
    ]
    return {
        "title": title,
        "x_ticks": [(at(tick, *across), f"{tick:g}") for tick in x_ticks],
        "y_ticks": [(at(tick, *up), f"{tick:g}") for tick in y_ticks],
        "lines": lines,
    }


def _range(curves: Sequence[Curve]) -> tuple[float, float]:
    """The least and the largest value of the curves of a chart."""
    values = np.concatenate([curve.values for curve in curves])
    return float(values.min()), float(values.max())


def at(value: float, low: float, high: float, first: float, last: float) -> float:
    """The pixel of a value between two ends."""
    return first + (last - first) * ((value - low) / (high - low) if high > low else 0.5)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high, at most so many."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)] or [low]
