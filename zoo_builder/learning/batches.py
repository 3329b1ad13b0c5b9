"""Fresh training sequences without end, drawn for several updates together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from weightspace.rollout import Streams
from zoo_builder.tasks import Batch, Task

UPDATES_PER_DRAW = 8
"""Number of updates whose data are drawn together, because a draw costs much the same for few sequences as for many."""


class BatchSource:
    """The batches of a stack of models, `batch_size` sequences for each update."""

    def __init__(
        self,
        task: Task,
        values: Callable[[], Mapping[str, Tensor]],
        streams: Streams,
        batch_size: int,
        values_change_every: int | None = None,
    ) -> None:
        """Draw with the values of the task's varying fields that `values` gives at each draw.

        `values_change_every` so many updates they may change: no draw reaches beyond such an update.
        """
        self._task, self._values, self._streams = task, values, streams
        self._batch_size, self._values_change_every = batch_size, values_change_every
        self._drawn: Batch | None = None
        self._taken = 0

    def take(self, update: int, most: int) -> Batch:
        """The sequences of the next updates, from number `update` on: at most `most` updates, within one draw."""
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
