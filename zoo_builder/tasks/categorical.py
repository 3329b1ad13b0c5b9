"""Tasks whose answers are classes: cross-entropy as loss, accuracy as score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout.criterion import Criterion
from weightspace.store import OutputKind
from zoo_builder.tasks.base import Batch, Task

Score = Callable[..., Tensor]


def share_of_right(score: Score) -> Score:
    """Decorator: this score is plain accuracy over the criterion's targets.

    A fast rollout may then count them itself. A task that overrides its score says nothing of the kind, unless it
    declares it again.
    """
    score.is_share_of_right = True  # type: ignore[attr-defined]
    return score


def counts_right_answers(task: Task) -> bool:
    """Whether a task's loss is its criterion and its score the share of right answers among what that asks for."""
    kind = type(task)
    # Who overrides one of the two alone may mean something else by it.
    definers = {next(base for base in kind.__mro__ if name in vars(base)) for name in ("criterion", "score")}
    return kind.loss is Task.loss and len(definers) == 1 and getattr(kind.score, "is_share_of_right", False)


@dataclass(frozen=True, kw_only=True)
class Categorical(Task):
    """A task that asks for one of `output_size` classes at its scored steps."""

    output_kind: ClassVar[OutputKind] = "categorical"

    def criterion(self, batch: Batch) -> Criterion:
        """Mean cross-entropy in nats."""
        return Criterion("cross_entropy", batch.target[..., None], batch.shares, self.output_size)

    @share_of_right
    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of right answers (models,) among the scored ones of outputs (models, time, batch, output).

        NaN where an output at a step that counts is not finite.
        """
        scored = outputs[:, -batch.target.shape[1] :]
        right = (scored.argmax(-1) == batch.target).to(torch.float64)
        # min and max propagate NaN, so two reductions check everything.
        finite = scored.amax((2, 3)).isfinite() & scored.amin((2, 3)).isfinite()
        if batch.weight is not None:
            finite |= batch.weight == 0
        return torch.where(finite.all(1), mean_over_scored(right, batch), torch.nan)


def mean_over_scored(per_position: Tensor, batch: Batch) -> Tensor:
    """Mean (models,) of a quantity (models, scored, batch), each step counted as much as the batch says."""
    per_step = per_position.mean(2)
    if batch.weight is None:
        return per_step.mean(1)
    weight = batch.weight.to(per_step.dtype)
    # A weight of zero must hide even an infinite entry.
    return torch.where(weight > 0, per_step * weight, 0).sum(1) / weight.sum(1)
