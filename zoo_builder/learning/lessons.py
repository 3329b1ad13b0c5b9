"""A stack of models while it learns by gradients: its params and optimiser, its data, its exams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Captured, Method, Streams, native
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.rollout.noise import draw_noise
from weightspace.spec import Params
from zoo_builder.learning.exams import Examination
from zoo_builder.learning.optimiser import Due, StackedAdamW, Standing
from zoo_builder.tasks import Batch, Task

if TYPE_CHECKING:
    from zoo_builder.learning.bptt import BPTT

UPDATES_PER_DRAW = 8
"""Number of updates whose data are drawn together, because a draw costs much the same for few sequences as for many."""


class Supply:
    """Fresh sequences without end, drawn for several updates together."""

    def __init__(self, learner: BPTT, task: Task, values: Callable[[], Mapping[str, Tensor]], streams: Streams) -> None:
        """Of the values of the task's varying fields that `values` gives at each draw."""
        self._learner, self._task, self._values, self._streams = learner, task, values, streams
        self._drawn: Batch | None = None
        self._taken = 0

    def take(self, update: int, most: int) -> Batch:
        """The sequences of the updates from number `update` on: of at most `most`, and of what is drawn together."""
        if self._drawn is None:
            self._drawn, self._taken = self._draw(update), 0
        drawn = self._drawn.x.shape[2]
        count = min(most * self._learner.batch_size, drawn - self._taken)
        batch = self._drawn.narrow(self._taken, count)
        self._taken += count
        if self._taken == drawn:
            self._drawn = None
        return batch

    def _draw(self, update: int) -> Batch:
        ahead, exams = UPDATES_PER_DRAW, self._learner.exams
        if exams is not None and exams.curriculum:
            # What an exam may change is not drawn before it.
            ahead = min(ahead, exams.every - update % exams.every)
        return self._task.sample(self._values(), self._streams, ahead * self._learner.batch_size, "train")


class Lessons:
    """A stack of models while it learns."""

    def __init__(
        self,
        learner: BPTT,
        family: Family,
        task: Task,
        values: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        params: Params,
        streams: Streams,
        method: Method,
    ) -> None:
        """Start from stacked params (models, ...), with each model's own settings (models,) in `own`."""
        self._family, self._task, self._streams, self._learner = family, task, streams, learner
        self._fixed = {name: tensor for name, tensor in params.items() if name not in family.spec.trained}
        settings = (own["learning_rate"], own["weight_decay"], own["clip"])
        fused = method == "native" and streams.device.type == "cpu" and native.why_not(family) is None
        self.optimiser = StackedAdamW(family.spec, params, *settings, fused=fused)
        self._in_c = fused and native.can_descend_on(family)
        self._examination: Examination | None = None
        if learner.exams is not None:
            exam = Streams(streams.seed, streams.model_ids, "exam", streams.device)
            self._examination = Examination(learner.exams, own["exams.threshold"], family, task, values, exam, method)
        self._rate: Callable[[int], Tensor | None] = lambda update: None
        if learner.schedule is not None:
            warm_up, final = (own[f"schedule.{name}"].to(streams.device) for name in ("warm_up", "final"))
            self._rate = partial(learner.schedule.factor, num_updates=learner.num_updates, warm_up=warm_up, final=final)
        self._own_values = values
        self._supply = Supply(learner, task, lambda: self.values, streams)
        # All that differs between updates is an argument, so that one capture serves them all.
        self._updated = Captured(partial(_updated, family, task, method, self.optimiser))
        self.updates = 0
        """How many updates were made."""
        self._anyone_learns = True

    @property
    def values(self) -> Mapping[str, Tensor]:
        """The values of the task's varying fields that the models learn now, (models,)."""
        return self._own_values if self._examination is None else self._examination.values

    @property
    def params(self) -> Params:
        """All tensors (models, ...) as they are now."""
        return self._fixed | self.optimiser.params()

    def examine(self) -> None:
        """Hold the exam that is due now, if there is one and anyone to take it."""
        if self._anyone_learns and self._examination is not None and self._examination.due(self.updates):
            stops = self._examination.hold(self.updates, self.params, self.optimiser.standing.learning)
            self.optimiser.stop(stops)
            self._anyone_learns = bool(self.optimiser.standing.learning.any())

    def snapshot(self) -> Params:
        """A copy of all tensors on the CPU, and a note of where every model stands."""
        if self._examination is not None:
            self._examination.note()
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.params.items()}

    def go_on(self, stop: int) -> None:
        """Make some updates, up to number `stop` or the next exam at most; none where no model would move."""
        if self._examination is not None:
            stop = min(stop, self._examination.next_after(self.updates))
        self._anyone_learns = self._anyone_learns and bool(self.optimiser.standing.learning.any())
        if not self._anyone_learns:
            self.updates = stop
            return
        batch = self._supply.take(self.updates, stop - self.updates)
        count = batch.x.shape[2] // self._learner.batch_size
        rates = [self._rate(update) for update in range(self.updates, self.updates + count)]
        self._learn(batch, rates)
        self.updates += count

    def _learn(self, batch: Batch, rates: list[Tensor | None]) -> None:
        """One update for each of `rates`, on as many sequences of a batch."""
        criterion = self._task.criterion(batch) if self._in_c else None
        if criterion is not None:
            make = partial(native.descend_on, self._family, self.params, self._family.spec.trained)
            weights = self._weights(batch, len(rates))
            noise = self._noise(batch, len(rates))
            self.optimiser.in_c(rates, partial(make, batch.x, batch.start, criterion, weights, noise))
            return
        for own, rate in zip(batch.split(self._learner.batch_size), rates, strict=True):
            noise = draw_noise(self._family.spec, self._streams, *own.x.shape[1:3])
            due = self.optimiser.due(rate)
            self.optimiser.standing = self._updated(self._fixed, self.optimiser.standing, due, own, noise)

    def _noise(self, batch: Batch, updates: int) -> dict[str, Tensor]:
        """The noise of so many updates, drawn update by update and put together along the sequences."""
        time, size = batch.x.shape[1], self._learner.batch_size
        draws = [draw_noise(self._family.spec, self._streams, time, size) for _ in range(updates)]
        return {name: torch.cat([draw[name] for draw in draws], dim=2) for name in self._family.spec.noise}

    def _weights(self, batch: Batch, updates: int) -> Tensor:
        """What each scored step counts in each update's own criterion, (updates, models, scored)."""
        size = self._learner.batch_size
        own = [self._task.criterion(batch.narrow(update * size, size)) for update in range(updates)]
        return torch.stack([criterion.weight for criterion in own if criterion is not None])

    def records(self) -> dict[str, Tensor]:
        """What was recorded with the snapshots, (models, snapshots), float64."""
        return self._examination.records() if self._examination is not None else {}


def _updated(
    family: Family,
    task: Task,
    method: Method,
    optimiser: StackedAdamW,
    fixed: Params,
    standing: Standing,
    due: Due,
    batch: Batch,
    noise: Mapping[str, Tensor],
) -> Standing:
    """Where the models stand after one update on their batches; `fixed` are the params that are not trained."""
    params = fixed | optimiser.params(standing)
    loss = task.criterion(batch) or partial(task.loss, batch=batch)
    losses, gradients = losses_and_gradients(
        family, params, family.spec.trained, batch.x, batch.start, loss, method=method, noise=noise
    )
    return optimiser.after(standing, due, losses, gradients)
