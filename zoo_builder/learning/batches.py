"""Training data: fresh sequences without end, drawn for several updates together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Streams
from zoo_builder.tasks import Batch, Task

UPDATES_PER_DRAW = 8
"""Updates whose data are drawn together: a draw costs much the same for few sequences as for many."""


@dataclass(frozen=True)
class Exercise:
    """The task of a stack of models: data and noise of each update are drawn from the models' own streams."""

    family: Family
    task: Task
    streams: Streams
    batch_size: int
    """Sequences of an update."""
    values: Callable[[], Mapping[str, Tensor]] = dict
    """Present values of the task's varying fields, asked for at each draw."""
    values_change_every: int | None = None
    """Number of updates after each of which values may change: no draw reaches beyond such an update."""


class BatchSource:
    """The batches of a stack of models, `batch_size` sequences for each update."""

    def __init__(self, exercise: Exercise) -> None:
        self._task, self._values, self._streams = exercise.task, exercise.values, exercise.streams
        self._batch_size, self._values_change_every = exercise.batch_size, exercise.values_change_every
        self._drawn: Batch | None = None
        self._taken = 0

    def take(self, update: int, most: int) -> Batch:
        """Sequences of the next updates, from number `update` on: at most `most` updates, within one draw."""
        if self._drawn is None:
            self._drawn, self._taken = self._draw(update), 0
        drawn = self._drawn.x.shape[2]
        count = min(most * self._batch_size, drawn - self._taken)
        batch = self._drawn.narrow(self._taken, count)
        self._taken += count
        if self._taken == drawn:
            self._drawn = None
        return batch

    def _draw(self, update: int) -> Batch:
        ahead = UPDATES_PER_DRAW
        if self._values_change_every is not None:
            ahead = min(ahead, self._values_change_every - update % self._values_change_every)
        return self._task.sample(self._values(), self._streams, ahead * self._batch_size, "train")
