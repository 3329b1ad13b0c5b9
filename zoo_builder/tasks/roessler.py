"""Prediction of the Roessler system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo_builder.tasks.flow import Flow

A, B, C = 0.2, 0.2, 5.7


@dataclass(frozen=True, kw_only=True)
class Roessler(Flow):
    """Where will the Roessler system be, `ahead` samples from now? (Roessler, Physics Letters A 1976)

    x' = -y - z, y' = x + y / 5, z' = 1/5 + z (x - 5.7), sampled every 0.4, about 15 times in a turn; its largest
    Lyapunov exponent is 0.07. As Chakraborty et al. (ICLR 2024, arXiv 2403.03409) predict it with pruned spiking
    networks; how they sample it was not at hand. Everything else is that of `Flow`.
    """

    interval: ClassVar[float] = 0.4
    substeps: ClassVar[int] = 6
    centre: ClassVar[tuple[float, float, float]] = (1.16, -1.47, 11.4)
    reach: ClassVar[tuple[float, float, float]] = (10.3, 9.3, 11.4)

    @classmethod
    def velocity(cls, state: Tensor) -> Tensor:
        x, y, z = state
        return torch.stack([-y - z, x + y * A, (x - C) * z + B])

    @classmethod
    def examples(cls) -> Sequence[Roessler]:
        return [cls(num_steps=12, max_ahead=4, ahead=2), cls(num_steps=9, max_ahead=2, ahead=1, observed=2)]
