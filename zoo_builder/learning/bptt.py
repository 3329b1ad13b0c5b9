"""Backpropagation through time over a stack of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.spec import Params
from zoo_builder.learning.descent import Descent
from zoo_builder.tasks import Batch, Task


@dataclass(frozen=True, kw_only=True)
class BPTT(Descent):
    """Gradient descent through whole sequences with AdamW, on fresh data at each update (Werbos, Proc. IEEE 1990).

    Settings, data, exams and snapshots are those of `Descent`.
    """

    native_updates: ClassVar[bool] = True

    def gradients(
        self,
        family: Family,
        task: Task,
        params: Params,
        batch: Batch,
        noise: Mapping[str, Tensor],
        method: Method,
    ) -> tuple[Tensor, Params]:
        """Gradients through the whole rollout (see the base): a native one takes a declared criterion in."""
        loss = task.criterion(batch) or partial(task.loss, batch=batch)
        trained = family.spec.trained
        return losses_and_gradients(family, params, trained, batch.x, batch.start, loss, method=method, noise=noise)
