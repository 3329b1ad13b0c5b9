"""How well a model does its task on longer sequences than it learned from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import SEQUENCES, Driven
from zoo_builder.tasks import Task

TIMES = 2
"""How many times longer the sequences are."""


@dataclass(frozen=True, kw_only=True)
class LengthGeneralisation(Label):
    """Score on held-out sequences of twice the length."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return (
            LabelColumn(
                name="longer_score",
                unit="task score, at most 1, higher is better",
                definition=f"The task's score on {SEQUENCES['test']} held-out sequences of the model's own task with "
                f"{TIMES} times its `num_steps`. Null where the task has no such parameter, or cannot be as long; "
                "compare with `score`.",
                source="the task's definition",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        longer = _longer(driven.task)
        if longer is None:
            return {"longer_score": driven.not_applicable}
        on_longer = Driven(driven.family, driven.params_as_run, longer, driven.inputs.members, driven.method)
        scores = [score for score, _ in on_longer.judgements("test")]
        return {"longer_score": torch.stack(scores).mean(0)}


def _longer(task: Task | None) -> Task | None:
    """The task with longer sequences, None where its length is not one of its fields, or cannot be so long."""
    if task is None or "num_steps" not in task.config:
        return None
    try:
        return dataclasses.replace(task, num_steps=TIMES * task.num_steps)  # type: ignore[call-arg]
    except ValueError:
        # A text, say, may be too short: no reason to lose the labels of models that have learned already.
        return None
