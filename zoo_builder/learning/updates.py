"""Updates of a stack of models: the contract, and those on batches, one by one or several in one call of C."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from weightspace.rollout import Captured, native
from weightspace.rollout.noise import draw_noise
from weightspace.spec import Params
from zoo_builder.learning.batches import BatchSource, Exercise
from zoo_builder.learning.optimiser import OptimiserState, StackedAdamW, StepConstants
from zoo_builder.tasks import Batch

Gradients = Callable[[Params, Batch, Mapping[str, Tensor]], tuple[Tensor, Params]]
"""Losses (models,) and gradients (models, ...) by trained tensor, of all params, a batch and noise."""


Rate = Callable[[int], Tensor | None]
"""Factor (models,) of the learning rates at an update counted from 0, or None."""


class Updates(ABC):
    """Updates of a stack of models: its optimiser and the tensors that are not trained."""

    def __init__(self, optimiser: StackedAdamW, fixed: Params) -> None:
        self.optimiser, self.fixed = optimiser, fixed

    @property
    def params(self) -> Params:
        """Present values of all tensors of the family (models, ...)."""
        return self.fixed | self.optimiser.params()

    @abstractmethod
    def make(self, first: int, stop: int, rate: Rate) -> int:
        """Make updates from number `first` on, at most up to `stop`; returns how many, at least one."""


class BatchUpdates(Updates):
    """Updates by the gradients of fresh batches."""

    def __init__(
        self, exercise: Exercise, gradients: Gradients, optimiser: StackedAdamW, fixed: Params, *, natively: bool
    ) -> None:
        """With `natively`, whole updates are made in C where the batch has a declared criterion."""
        super().__init__(optimiser, fixed)
        self._source = BatchSource(exercise)
        self._family, self._task = exercise.family, exercise.task
        self._streams, self._batch_size = exercise.streams, exercise.batch_size
        self._natively = natively
        # Everything that differs between updates is an argument: one capture serves them all.
        self._updated = Captured(partial(_updated, gradients, optimiser))

    def make(self, first: int, stop: int, rate: Rate) -> int:
        batch = self._source.take(first, stop - first)
        count = batch.x.shape[2] // self._batch_size
        self._make(batch, [rate(update) for update in range(first, first + count)])
        return count

    def _make(self, batch: Batch, rates: Sequence[Tensor | None]) -> None:
        """Make an update for each of `rates` (see `StackedAdamW.step_constants`), each on its batch of sequences."""
        criterion = self._task.criterion(batch) if self._natively else None
        if criterion is not None:
            make = partial(native.descend_on, self._family, self.params, self._family.spec.trained)
            weights, noise = self._weights(batch, len(rates)), self._noise(batch, len(rates))
            self.optimiser.update_natively(rates, partial(make, batch.x, batch.start, criterion, weights, noise))
            return
        for part, rate in zip(batch.split(self._batch_size), rates, strict=True):
            noise = draw_noise(self._family.spec, self._streams, *part.x.shape[1:3])
            constants = self.optimiser.step_constants(rate)
            self.optimiser.state = self._updated(self.fixed, self.optimiser.state, constants, part, noise)

    def _noise(self, batch: Batch, updates: int) -> dict[str, Tensor]:
        """Noise of several updates, drawn update by update and joined along the sequences."""
        time, size = batch.x.shape[1], self._batch_size
        draws = [draw_noise(self._family.spec, self._streams, time, size) for _ in range(updates)]
        return {name: torch.cat([draw[name] for draw in draws], dim=2) for name in self._family.spec.noise}

    def _weights(self, batch: Batch, updates: int) -> Tensor:
        """Weight of each scored step in each update's own criterion, (updates, models, scored)."""
        size = self._batch_size
        criteria = [self._task.criterion(batch.narrow(update * size, size)) for update in range(updates)]
        return torch.stack([criterion.weight for criterion in criteria if criterion is not None])


def _updated(
    gradients: Gradients,
    optimiser: StackedAdamW,
    fixed: Params,
    state: OptimiserState,
    constants: StepConstants,
    batch: Batch,
    noise: Mapping[str, Tensor],
) -> OptimiserState:
    """The optimiser's state after one update on a batch; `fixed` are the params that are not trained."""
    losses, found_gradients = gradients(fixed | optimiser.params(state), batch, noise)
    return optimiser.after(state, constants, losses, found_gradients)
