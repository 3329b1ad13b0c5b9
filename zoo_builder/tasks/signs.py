"""Tasks whose answers are signs: squared distance to -1 or 1 as loss, share of right signs as score."""

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
class Signs(Task):
    """A task that asks for `output_size` values of -1 or 1 at its scored steps; guessing scores 0.5."""

    output_kind: ClassVar[OutputKind] = "continuous"

    def criterion(self, batch: Batch) -> Criterion:
        """Mean squared error."""
        return Criterion("squared_error", batch.target, batch.shares)

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of right signs (models,) among the scored values of outputs (models, time, batch, output)."""
        scored = outputs[:, -batch.target.shape[1] :]
        right = (scored * batch.target > 0).to(torch.float64).mean(-1)
        return torch.where(scored.isfinite().flatten(1).all(1), mean_over_scored(right, batch), torch.nan)
