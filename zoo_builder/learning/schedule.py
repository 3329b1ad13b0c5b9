"""Learning-rate schedules: a factor of the learning rate for each update and model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from zoo_builder.fields import refuse_below_least

# Arguments: progress (models,) from 0 to 1, each model's factor at the end, and the number of drops.
SHAPES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "constant": lambda way, final, drops: torch.ones_like(way),
    "linear": lambda way, final, drops: 1 - (1 - final) * way,
    "cosine": lambda way, final, drops: final + (1 - final) * (1 + torch.cos(math.pi * way)) / 2,
    "exponential": lambda way, final, drops: final**way,
    # Rounding: three thirds must count as 1.
    "step": lambda way, final, drops: final ** (torch.floor(way * (drops + 1) + 1e-9).clamp(max=drops) / drops),
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate changes over the updates of a learner, as a factor of each model's own learning rate.

    A warm-up: over the first `warm_up` updates W the factor rises evenly, (u + 1)/(W + 1) at update u = 0 .. W - 1.
    From there to the last update D it goes from 1 towards `final`, with t = (u - W)/(D - W): "linear", "cosine"
    (final + (1 - final)(1 + cos(pi t))/2, after Loshchilov and Hutter, SGDR, ICLR 2017), "exponential" (final^t),
    "step" (`drops` equal drops, D - W updates cut into `drops` + 1 pieces), or it stays ("constant").
    """

    shape: Literal["constant", "linear", "cosine", "exponential", "step"] = "constant"
    """The way from the end of the warm-up to the last update."""
    warm_up: int = 0
    """Updates over which the factor rises, below the number of updates."""
    final: float = 0.01
    """Factor at the last update."""
    drops: int = field(default=3, metadata={"least": 1})
    """Number of equal drops of the shape "step"."""

    def __post_init__(self) -> None:
        refuse_below_least(self)
        if self.shape not in SHAPES:
            raise ValueError(f"`shape` (={self.shape!r}) must be one of {list(SHAPES)}.")
        if self.shape in ("exponential", "step") and self.final == 0:
            raise ValueError(f"`final` (=0) must be above 0 for the shape '{self.shape}', which is a power of it.")

    def factor(self, update: int, num_updates: int, warm_up: Tensor, final: Tensor) -> Tensor:
        """Factor (models,), float64, of update number `update` of `num_updates`, counted from 0.

        `warm_up` and `final` (models,), float64, are each model's own.
        """
        rising = (update + 1) / (warm_up + 1)
        way = ((update - warm_up) / (num_updates - warm_up)).clamp(0, 1)
        return torch.where(update < warm_up, rising, SHAPES[self.shape](way, final, self.drops))
