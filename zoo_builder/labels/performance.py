"""How well a model does its task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import SEQUENCES, Driven
from zoo_builder.tasks import Split


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
                definition=f"Score on {SEQUENCES['train']} sequences drawn as in training minus the score {held_out}.",
                source="the task's definition",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        if driven.task is None:
            missing = torch.full((len(driven.model_ids),), torch.nan, dtype=torch.float64, device=driven.device)
            return {"score": missing, "loss": missing, "generalisation_gap": missing}
        score, loss = _score_and_loss(driven, "test")
        trained_on, _ = _score_and_loss(driven, "train")
        return {"score": score, "loss": loss, "generalisation_gap": trained_on - score}


def _score_and_loss(driven: Driven, split: Split) -> tuple[Tensor, Tensor]:
    """Means (models,) over batches of equal size."""
    assert driven.task is not None
    scores, losses = [], []
    for batch, outputs in driven.answers(split):
        scores.append(driven.task.score(outputs, batch))
        losses.append(driven.task.loss(outputs, batch))
    return torch.stack(scores).mean(0), torch.stack(losses).mean(0)
