"""The direction of the head, integrated from turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weightspace.rollout import Streams
from zoo_builder.tasks.base import Task
from zoo_builder.tasks.navigation import STEP, TURN, Navigation

WIDTH = math.pi / 6
"""Width sigma of a cell's tuning."""
PULL = 0.15
"""Share of sin(angle - anchor) by which an anchored head turns back at each step."""
APPROACH = 60
"""Steps of an anchored walk before the first that counts: after several times 1 / PULL the start is forgotten."""


@dataclass(frozen=True, kw_only=True)
class HeadDirection(Navigation):
    """Which way does the head point? Turns are shown, the first direction by the activities of cells.

    Turns are N(0, 11.52^2 rad/s) in steps of 0.02 s, a standard deviation of 0.23 rad, from a uniform direction on.
    "turning" heads turn by the absolute values, counter-clockwise alone. "anchored" ones are drawn back to direction 0
    by 0.15 sin(angle) at each step and stay near it: a form of biased occupancy that the paper does not have for heads.
    Cell i answers by exp((cos(angle - mu_i) - 1) / sigma^2), with sigma = pi / 6 and mu_i evenly spaced. Krishna et al.
    (Sufficient conditions for offline reactivation in recurrent neural networks, ICLR 2024), whose code spaces cells so
    that the first and the last coincide, and decodes by the three most active ones; here cells are distinct, and all
    are read, as a vector sum.
    """

    bias: Literal["none", "turning", "anchored"] = "none"
    """Which directions or turns are preferred."""

    input_range: ClassVar[tuple[float, float]] = (-0.7, 0.7)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias not in ("none", "turning", "anchored"):
            raise ValueError(f"`bias` (={self.bias!r}) must be 'none', 'turning' or 'anchored'.")

    @property
    def input_size(self) -> int:
        return 1

    def walk(self, streams: Streams, batch_size: int) -> tuple[Tensor, Tensor]:
        before = APPROACH if self.bias == "anchored" else 0
        angle = 2 * math.pi * streams.uniform(batch_size)
        turns = TURN * STEP * streams.normal(before + self.num_steps, batch_size)
        turns = turns.abs() if self.bias == "turning" else turns
        if self.bias == "anchored":
            drawn, turns = turns, torch.empty_like(turns)
            now = angle
            for t in range(drawn.shape[1]):
                turns[:, t] = drawn[:, t] - PULL * now.sin()
                now = now + turns[:, t]
        angles = torch.cat([angle[:, None], angle[:, None] + turns.cumsum(1)], 1)
        return angles[:, before:, :, None], turns[:, before:, :, None].contiguous()

    @property
    def preferred(self) -> Tensor:
        """Directions mu (cell,) to which cells answer most, float64."""
        return 2 * math.pi * torch.arange(self.cells, dtype=torch.float64) / self.cells

    def activities(self, places: Tensor) -> Tensor:
        # In place: a draw for many models has hundreds of megabytes.
        return (places - self.preferred.to(places.device, places.dtype)).cos_().sub_(1).div_(WIDTH**2).exp_()

    def decoded(self, activities: Tensor) -> Tensor:
        """Directions (..., 1), from -pi to pi: that of the sum of preferred directions, weighted by activities."""
        mu = self.preferred.to(activities.device, activities.dtype)
        across, along = ((activities * part).sum(-1, keepdim=True) for part in (mu.sin(), mu.cos()))
        return torch.atan2(across, along)

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(cells=6, num_steps=5), cls(cells=8, num_steps=4, bias="anchored")]
