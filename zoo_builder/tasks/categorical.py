"""Tasks whose answers are classes: cross-entropy as loss, accuracy as score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weightspace.rollout.criterion import Criterion
from zoo_builder.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class Categorical(Task):
    """A task that asks for one of `output_size` classes at its scored steps."""

    output_kind: ClassVar[Literal["categorical", "continuous"]] = "categorical"

    def criterion(self, batch: Batch) -> Criterion:
        """Mean cross-entropy in nats."""
        return Criterion("cross_entropy", batch.target[..., None], batch.shares, self.output_size)

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of right answers (models,) among the scored ones of outputs (models, time, batch, output)."""
        scored = outputs[:, -batch.target.shape[1] :]
        right = (scored.argmax(-1) == batch.target).to(torch.float64)
        # NaN is the extreme of all that it is among, and extremes are found faster than each number is looked at.
        finite = scored.amax((1, 2, 3)).isfinite() & scored.amin((1, 2, 3)).isfinite()
        return torch.where(finite, mean_over_scored(right, batch), torch.nan)


def mean_over_scored(per_position: Tensor, batch: Batch) -> Tensor:
    """Mean (models,) of a quantity (models, scored, batch), each step counted as much as the batch says."""
    per_step = per_position.mean(2)
    if batch.weight is None:
        return per_step.mean(1)
    weight = batch.weight.to(per_step.dtype)
    # A weight of zero must hide even an infinite entry.
    return torch.where(weight > 0, per_step * weight, 0).sum(1) / weight.sum(1)
