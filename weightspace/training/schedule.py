"""Learning rates over training, as shares of their peak."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "constant"]
SMALLEST = 1e-2
"""Least share during the warm-up: a first step of 0 would be lost."""


def share_of_peak(done: float, warmup: float, schedule: Schedule) -> float:
    """Learning rate over its peak where a share `done` of training is over: a linear warm-up, then the schedule."""
    if done < warmup:
        return max(done / warmup, SMALLEST)
    if schedule == "constant":
        return 1.0
    remaining = min((done - warmup) / max(1 - warmup, 1e-9), 1.0)
    return 0.5 * (1 + math.cos(math.pi * remaining))
