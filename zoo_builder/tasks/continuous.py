"""Tasks whose answers are values: mean squared error as loss, share of variance explained as score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout.criterion import Criterion
from weightspace.store import OutputKind
from zoo_builder.tasks.base import Batch, Task
from zoo_builder.tasks.categorical import mean_over_scored


@dataclass(frozen=True, kw_only=True)
class Continuous(Task):
    """A task that asks for `output_size` values at its scored steps."""

    output_kind: ClassVar[OutputKind] = "continuous"

    def criterion(self, batch: Batch) -> Criterion:
        """Mean squared error."""
        return Criterion("squared_error", batch.target, batch.shares)

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of the targets' variance that outputs (models, time, batch, output) explain (models,).

        R2 = 1 - mean (output - target)^2 / mean (target - mean target)^2, means over scored steps and sequences: 1 for
        the right answers, 0 for their mean as a constant answer, below 0 for worse. NaN where no target varies.
        """
        scored, target = outputs[:, -batch.target.shape[1] :].double(), batch.target.double()
        means = torch.stack([mean_over_scored(component, batch) for component in target.unbind(-1)], dim=-1)
        variance = mean_over_scored((target - means[:, None, None]).square().mean(-1), batch)
        error = mean_over_scored((scored - target).square().mean(-1), batch)
        usable = scored.isfinite().flatten(1).all(1) & (variance > 0)
        return torch.where(usable, 1 - error / variance, torch.nan)
