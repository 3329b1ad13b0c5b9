"""Prediction of the Lorenz system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo_builder.tasks.flow import Flow

SIGMA, RHO, BETA = 10.0, 28.0, 8 / 3


@dataclass(frozen=True, kw_only=True)
class Lorenz(Flow):
    """Where will the Lorenz system be, `ahead` samples from now? (Lorenz, Journal of the Atmospheric Sciences 1963)

    x' = 10 (y - x), y' = x (28 - z) - y, z' = x y - 8/3 z, sampled every 0.05; its largest Lyapunov exponent is 0.906,
    so that errors grow by a factor e in 22 samples. As Chakraborty et al. (ICLR 2024, arXiv 2403.03409) predict it with
    pruned spiking networks; how they sample it was not at hand. Everything else is that of `Flow`.
    """

    interval: ClassVar[float] = 0.05
    substeps: ClassVar[int] = 2
    centre: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 24.6)
    reach: ClassVar[tuple[float, float, float]] = (19.3, 26.6, 22.6)

    @classmethod
    def velocity(cls, state: Tensor) -> Tensor:
        x, y, z = state
        return torch.stack([(y - x) * SIGMA, x * (RHO - z) - y, x * y - z * BETA])

    @classmethod
    def examples(cls) -> Sequence[Lorenz]:
        return [cls(num_steps=12, max_ahead=4, ahead=2), cls(num_steps=9, max_ahead=2, ahead=1, observed=1)]
