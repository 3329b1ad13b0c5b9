"""Curricula: every model of a stack on its own level of its task, harder by one each time it passes an exam."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.rollout import Streams
from zoo_builder.tasks import Task


class Curriculum:
    """Levels of the models of a stack, from a task's easiest version up to each model's own.

    A level is a value of the field that the task declares as its `difficulty`. A model begins at the least one and is
    one level up after every exam that it passes, until its own value. The task decides about earlier levels:
    with one head the model is asked for its level alone, with many heads for all levels so far, each through its own
    head, with a window of heads for the last few (Khajehabdollahi et al., Emergent mechanisms for long timescales
    depend on training curriculum and affect performance in memory tasks, ICLR 2024, arXiv 2309.12927).
    """

    def __init__(self, task: Task, values: Mapping[str, Tensor], streams: Streams) -> None:
        """Start at the least level; `values[field]` (models,) are the models' own values of the varying fields."""
        assert task.difficulty is not None
        self.field, least = task.difficulty
        self._values = values
        self.goal = task.value(self.field, values, streams)
        self.level = torch.full_like(self.goal, least).minimum(self.goal)

    @property
    def values(self) -> dict[str, Tensor]:
        """The values of the varying fields at the models' present levels, (models,), float64."""
        return {**self._values, self.field: self.level}

    @property
    def at_goal(self) -> Tensor:
        """Mask (models,), bool, of the models that have reached their own task."""
        return self.level >= self.goal

    def advance(self, passed: Tensor) -> None:
        """Move the models that `passed` (models,), bool, one level up."""
        self.level = torch.where(passed & ~self.at_goal, self.level + 1, self.level)
