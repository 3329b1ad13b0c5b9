"""Vectors with gaps, in units of their spread over the training models, as something to predict."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (value,), float64, of parts (models, value) with NaN where a model has no value.

    The deviation is 0 where values do not vary but for rounding, which must not be blown up.
    """
    count, total, square = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for part in parts:
        values = part.double().cpu()
        count = count + (~values.isnan()).sum(0)
        total = total + values.nan_to_num(0.0).sum(0)
        square = square + values.nan_to_num(0.0).square().sum(0)
    mean = total / count.clamp(min=1)
    scale = (square / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
    return mean, torch.where(scale > 1e-5 * (1 + mean.abs()), scale, 0.0)


def standardised(values: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Which values (models, value) there are, and those in units of `scale`, 0 where there is none."""
    known = ~values.isnan() & (scale > 0)
    return known, torch.where(known, (values - mean) / torch.where(scale > 0, scale, 1.0), 0.0)


def regression(predicted: Tensor, known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean loss, share of variance explained (of what has mean 0 and variance 1), and how many values that is of."""
    # Far outliers pull no harder than 5 standard deviations would.
    elementwise = F.huber_loss(predicted, wanted, reduction="none", delta=5.0)
    count = known.sum().clamp(min=1)
    square = torch.where(known, (predicted.detach() - wanted).square(), 0.0).sum() / count
    return torch.where(known, elementwise, 0.0).sum() / count, 1 - square, int(known.sum())


def squared_error(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error (models,) over the values (models, value) that are finite; NaN where a model has none."""
    known = wanted.isfinite()
    squares = (predicted - torch.where(known, wanted, predicted.detach())).square().sum(1)
    count = known.sum(1)
    return torch.where(count > 0, squares / count.clamp(min=1), torch.nan)


def head(embedding_dim: int, width: int, num_values: int) -> nn.Sequential:
    """A head with one hidden layer that starts from the mean of every value."""
    last = nn.Linear(width, num_values)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(embedding_dim, width), nn.SiLU(), last)
