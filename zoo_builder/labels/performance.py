"""How well a model does its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import SEQUENCES, Driven


@dataclass(frozen=True, kw_only=True)
class Performance(Label):
    """Score and loss on held-out sequences, and how much better the training sequences go."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        held_out = f"on {SEQUENCES['test']} held-out sequences of the model's own task"
        return (
            LabelColumn(
                name="score",
                unit="task score, at most 1, higher is better",
                definition=f"The task's score {held_out}: the share of right answers, where the task defines no other.",
                source="the task's definition",
            ),
            LabelColumn(
                name="loss",
                unit="task loss (nats for classes)",
                definition=f"The task's loss {held_out}: for classes cross-entropy, for values mean squared error.",
                source="the task's definition",
            ),
            LabelColumn(
                name="generalisation_gap",
                unit="task score",
                definition=f"Score on {SEQUENCES['train']} sequences drawn as in training minus the score {held_out}. "
                "Null where a task draws both alike, so that they differ by chance alone.",
                source="the task's definition",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        if driven.task is None:
            missing = driven.not_applicable
            return {"score": missing, "loss": missing, "generalisation_gap": missing}
        scores, losses = zip(*driven.judgements("test"), strict=True)
        score, gap = _mean(scores), torch.full_like(scores[0], torch.nan)
        if driven.task.splits_differ:
            gap = _mean([own for own, _ in driven.judgements("train")]) - score
        return {"score": score, "loss": _mean(losses), "generalisation_gap": gap}


def _mean(batches: Sequence[Tensor]) -> Tensor:
    """Means (models,) over batches of equal size."""
    return torch.stack(list(batches)).mean(0)
