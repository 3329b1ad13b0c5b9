"""How fast the influence of a state on later ones decays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import JACOBIAN_STEPS, JACOBIANS, Driven

MAX_LAG = JACOBIAN_STEPS
ALIKE = 1e-5
"""Distance from their mean, nats, up to which logs of norms are alike: that of params and products in float32."""


@dataclass(frozen=True, kw_only=True)
class Memory(Label):
    """Decay rate, half-life and goodness of fit of exponential forgetting, from products of Jacobians."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        line = (
            f"the least-squares line through log ||J(k) ... J(1)||_F against the lag k = 1 to {MAX_LAG}, mean over "
            f"trajectories, with the {JACOBIANS}"
        )
        alike = f"or all logs of norms are within {ALIKE:g} nats of their mean"
        source = "Jacobian products as in Vogt et al., Frontiers in Applied Mathematics and Statistics 2022"
        return (
            LabelColumn(
                name="memory_decay_rate",
                unit="nats per step",
                definition=f"Minus the slope of {line}. Null where a product vanishes: such a model forgets at once.",
                source=source,
            ),
            LabelColumn(
                name="memory_half_life",
                unit="steps",
                definition=f"ln 2 / memory_decay_rate. Null where influence does not decay, {alike}.",
                source=source,
            ),
            LabelColumn(
                name="memory_decay_fit",
                unit="R^2",
                definition=f"Share of variance explained by {line}. Null where no influence is left, {alike}.",
                source=source,
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        lags = torch.arange(1, MAX_LAG + 1, dtype=torch.float64, device=driven.device)
        norms = driven.measured.log_norms
        centred = lags - lags.mean()
        offset = norms - norms.mean(1, keepdim=True)
        # Row by row: the last bits of a matrix-vector product depend on how many rows it has.
        slope = (offset * centred).sum(1) / centred.square().sum()
        left = (offset - slope[:, None] * centred).square().sum(1)
        rate, differ = -slope, offset.abs().amax(1) > ALIKE
        return {
            "memory_decay_rate": rate,
            "memory_half_life": torch.where((rate > 0) & differ, math.log(2) / rate, torch.nan),
            "memory_decay_fit": torch.where(differ, 1 - left / offset.square().sum(1), torch.nan),
        }
