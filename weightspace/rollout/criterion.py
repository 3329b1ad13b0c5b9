"""Declared losses, which a native rollout can fuse into its program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

NOT_ASKED = -1
"""Target of a head that has no answer at a step."""


@dataclass(frozen=True)
class Criterion:
    """A loss of outputs: for each model, the sum over scored steps of `weight` times the mean over the batch.

    With `cross_entropy`, in nats, outputs are log-odds of `classes` classes for each of one or more heads, summed over
    heads; with `squared_error`, the mean over outputs of the squared difference.
    """

    kind: Literal["cross_entropy", "squared_error"]
    target: Tensor
    """Classes (models, scored, batch, head), int64, -1 where a head has no answer; or values (models, scored, batch,
    output) in the dtype of the outputs. The scored steps are the last ones."""
    weight: Tensor
    """Weight of each scored step, (models, scored), 0 or above; 0 removes even an infinite loss."""
    classes: int = 1

    def __call__(self, outputs: Tensor) -> Tensor:
        """Losses (models,) of outputs (models, time, batch, output)."""
        scored = outputs[:, -self.target.shape[1] :]
        if self.kind == "squared_error":
            losses = (scored - self.target.to(scored.dtype)).square().mean(-1)
        else:
            # Softmax over a short last axis is slow; with the class axis first it runs along the positions.
            log_odds = scored.unflatten(-1, (-1, self.classes)).movedim(-1, 1).flatten(2)
            nats = F.cross_entropy(log_odds, self.target.flatten(1), ignore_index=NOT_ASKED, reduction="none")
            losses = nats.unflatten(1, self.target.shape[1:]).sum(-1)
        weight = self.weight.to(losses.dtype)
        return torch.where(weight > 0, losses.mean(2) * weight, 0).sum(1)
