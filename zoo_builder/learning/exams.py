"""Exams during learning, by which models move up a curriculum, are recorded at the threshold, or stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Captured, Method, Streams, rollout
from weightspace.rollout.noise import draw_noise
from weightspace.spec import Params
from zoo_builder.fields import refuse_below_least
from zoo_builder.labels.base import LabelColumn
from zoo_builder.learning.curricula import Curriculum
from zoo_builder.tasks import Batch, Task

_EXAM = "exam on `exams.sequences` fresh sequences, drawn as in training, every `exams.every` updates"
_PASSED = "passed with a score of `exams.threshold` or more"
_SOURCE = "the learner's record; options are those of the learning_config"
COLUMNS = (
    LabelColumn(
        name="exam_score",
        unit="task score, at most 1, higher is better",
        definition=f"Score in the latest {_EXAM}, with several heads the lesser of their mean and the newest head's; "
        "under a curriculum at that time's level. A model that learns no more keeps its last. Null before the first.",
        source=_SOURCE,
    ),
    LabelColumn(
        name="steps_to_threshold",
        unit="updates",
        definition=f"Updates before the first {_EXAM}, that was {_PASSED} on the model's own task (under a curriculum: "
        "at its last level); the same at all snapshots, null if there was none while the model learned.",
        source=_SOURCE,
    ),
    LabelColumn(
        name="stopped_step",
        unit="updates",
        definition="Number of updates after which the model stopped learning, because an exam on its own task was "
        f"{_PASSED}; snapshots at that step and later hold the same params. Null if it never stopped.",
        source=_SOURCE,
    ),
    LabelColumn(
        name="curriculum_level",
        unit="value of the task's field of difficulty",
        definition="Level that the model is to learn next: the least one at first, one more after each exam that was "
        f"{_PASSED}, at most the value in its task_config.",
        source="Khajehabdollahi et al., ICLR 2024, arXiv 2309.12927",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Exams:
    """Every `every` updates each model is examined on `sequences` fresh sequences, drawn as in training.

    It passes with a score of `threshold` or more (a task with several heads asks for it on average and of the newest
    head). The first exam it passes on its own task is its `steps_to_threshold`; with `stop` it then learns no more.
    With `curriculum` it begins at the least level of the task, and an exam passed below its own takes it one further.
    """

    every: int = field(default=50, metadata={"least": 1})
    """Updates from one exam to the next."""
    sequences: int = field(default=128, metadata={"least": 1})
    """Fresh sequences of an exam."""
    threshold: float = 0.95
    """Score from which an exam is passed, from 0 to 1."""
    stop: bool = False
    """Whether a model that has passed on its own task learns no more."""
    curriculum: bool = False
    """Whether a model begins at the task's least level, and each exam passed takes it one further."""

    def __post_init__(self) -> None:
        refuse_below_least(self, " of the exams")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` (={self.threshold:g}) of the exams must be from 0 to 1, as scores are.")

    @property
    def columns(self) -> tuple[LabelColumn, ...]:
        """Columns of the zoo's table that exams fill."""
        used = {"stopped_step": self.stop, "curriculum_level": self.curriculum}
        return tuple(column for column in COLUMNS if used.get(column.name, True))


class Examination:
    """Exams of a stack of models and their results; a model that learns no more keeps its record."""

    def __init__(
        self,
        exams: Exams,
        threshold: Tensor,
        family: Family,
        task: Task,
        values: Mapping[str, Tensor],
        streams: Streams,
        method: Method,
    ) -> None:
        """Start without an exam; `threshold` (models,) is each model's own, `streams` are for exams alone."""
        self._exams, self._threshold = exams, threshold.to(streams.device)
        self._family, self._task, self._streams, self._final_values = family, task, streams, values
        self._curriculum = Curriculum(task, values, streams) if exams.curriculum else None
        self._answers = Captured(partial(_mastery, family, task, method))
        unknown = torch.full_like(self._threshold, torch.nan)
        self._score, self._reached, self._stopped = unknown, unknown, unknown
        self._noted: list[dict[str, Tensor]] = []

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Present values of the task's varying fields."""
        return self._final_values if self._curriculum is None else self._curriculum.values

    def due(self, update: int) -> bool:
        """Whether an exam is held after so many updates."""
        return update > 0 and update % self._exams.every == 0

    def next_after(self, update: int) -> int:
        """The number of updates after which the next exam is held."""
        return (update // self._exams.every + 1) * self._exams.every

    def hold(self, update: int, params: Params, learning: Tensor) -> Tensor:
        """Examine the models that are still `learning` (models,), bool; returns the mask of those that stop."""
        batch = self._task.sample(self.values, self._streams, self._exams.sequences, "train")
        noise = draw_noise(self._family.spec, self._streams, *batch.x.shape[1:3])
        score = self._answers(params, batch, noise)
        self._score = torch.where(learning, score, self._score)
        passed = learning & (score >= self._threshold)
        reached = passed if self._curriculum is None else passed & self._curriculum.at_goal
        self._reached = torch.where(reached & self._reached.isnan(), float(update), self._reached)
        if self._curriculum is not None:
            self._curriculum.advance(passed)
        stops = reached & self._exams.stop
        self._stopped = torch.where(stops, float(update), self._stopped)
        return stops

    def note(self) -> None:
        """Record the latest scores and levels with a snapshot."""
        level = self._score if self._curriculum is None else self._curriculum.level
        self._noted.append({"exam_score": self._score.cpu(), "curriculum_level": level.cpu()})

    def records(self) -> dict[str, Tensor]:
        """The columns of all snapshots so far, (models, snapshots), float64, on the CPU."""
        records = {name: torch.stack([noted[name] for noted in self._noted], dim=1) for name in self._noted[0]}
        for name, steps in (("steps_to_threshold", self._reached), ("stopped_step", self._stopped)):
            records[name] = steps.cpu()[:, None].expand(-1, len(self._noted))
        return {column.name: records[column.name] for column in self._exams.columns}


@torch.no_grad()
def _mastery(
    family: Family, task: Task, method: Method, params: Params, batch: Batch, noise: Mapping[str, Tensor]
) -> Tensor:
    """Mastery of an exam by each model (models,)."""
    return task.mastery(rollout(family, params, batch.x, batch.start, method=method, noise=noise).outputs, batch)
