"""How many directions the driven states fill, and for how long they resemble themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import DRIVE, WINDOW, Driven
from zoo_builder.labels.spectra import FLAT, finite_only, vary

SHARE = 0.9
"""Share of the variance that the counted directions must explain."""
MAX_LAG = WINDOW // 2


@dataclass(frozen=True, kw_only=True)
class Activity(Label):
    """Dimension of the driven states at 90% of their variance, and their autocorrelation time."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return (
            LabelColumn(
                name="activity_dimension",
                unit="directions",
                definition=f"Smallest number of principal components that explain {SHARE:.0%} of the variance of the "
                f"states on {DRIVE}. Null where no state varies.",
                source="definition; compare Gao et al., bioRxiv 214262, 2017",
            ),
            LabelColumn(
                name="autocorrelation_time",
                unit="steps",
                definition=f"Lag at which the autocorrelation of the states, mean over the units that vary, falls to "
                f"1/e, between whole lags by linear interpolation; about each unit's mean on {DRIVE}. Null where it is "
                f"beyond {MAX_LAG} steps.",
                source="as in Murray et al., Nature Neuroscience 2014, without its fit",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        states, finite = finite_only(driven.trajectory.before)
        # Scaled to 1, or states that are minute or huge leave the range of float64 when squared.
        states = states / states.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(states.dtype).tiny)
        found = {
            "activity_dimension": dimension(states.flatten(1, 2)),
            "autocorrelation_time": crossing_time(autocorrelation(states)),
        }
        return {name: torch.where(finite, value, torch.nan) for name, value in found.items()}


def dimension(samples: Tensor) -> Tensor:
    """Number of principal components (models,) that explain SHARE of the variance of samples (models, sample, unit)."""
    centred = samples - samples.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh(centred.transpose(1, 2) @ centred).flip(-1).clamp(min=0)
    total = values.sum(1, keepdim=True)
    # A sum that just reaches the share counts, whatever its rounding.
    count = 1 + (values.cumsum(1) < (SHARE - 1e-9) * total).sum(1)
    return torch.where(vary(samples), count.to(values.dtype), torch.nan)


def autocorrelation(states: Tensor) -> Tensor:
    """Autocorrelation (models, lag), lags 0 to MAX_LAG, of states (models, time, trajectory, unit).

    NaN where no unit varies.
    """
    num_steps = states.shape[1]
    centred = states - states.mean((1, 2), keepdim=True)
    variance = centred.square().mean((1, 2))
    varies = variance > FLAT
    found = []
    for lag in range(MAX_LAG + 1):
        covariance = (centred[:, : num_steps - lag] * centred[:, lag:]).mean((1, 2))
        share = torch.where(varies, covariance / torch.where(varies, variance, 1), 0)
        found.append(share.sum(1) / varies.sum(1))
    return torch.stack(found, dim=1)


def crossing_time(correlation: Tensor, level: float = math.exp(-1)) -> Tensor:
    """First place (models,) where correlation (models, lag) falls to the level, by interpolation; NaN if nowhere."""
    below = correlation <= level
    after = below.to(torch.int64).argmax(1).clamp(min=1)
    late = correlation.gather(1, after[:, None])[:, 0]
    early = correlation.gather(1, after[:, None] - 1)[:, 0]
    return torch.where(below.any(1), after - 1 + (early - level) / (early - late), torch.nan)
