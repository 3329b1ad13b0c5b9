"""Backpropagation through time that does not go back beyond windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, rollout
from weightspace.spec import Params, State
from zoo_builder.learning.descent import Descent
from zoo_builder.tasks import Batch, Task


@dataclass(frozen=True, kw_only=True)
class TruncatedBPTT(Descent):
    """BPTT that goes back to the start of a window of steps (Williams and Peng, Neural Computation 1990).

    Sequences are cut into windows of `window` steps, the last one with what is left; the state is carried from one to
    the next, gradients are not. Params change after whole sequences. Settings, data, exams and snapshots are those of
    `Descent`.
    """

    window: int = field(default=5, metadata={"least": 1})
    """Steps of a window, fewer than those of a sequence."""

    def gradients(
        self, family: Family, task: Task, params: Params, batch: Batch, noise: Mapping[str, Tensor], method: Method
    ) -> tuple[Tensor, Params]:
        """Losses and gradients (see the base), rolled out window by window from the detached state of the last."""
        leaves = {name: params[name].detach().requires_grad_() for name in family.spec.trained}
        state: State | None = None
        outputs = []
        run = partial(rollout, family, {**params, **leaves}, start=batch.start, method=method)
        for first in range(0, batch.x.shape[1], self.window):
            part = slice(first, first + self.window)
            drawn = {name: value[:, part] for name, value in noise.items()}
            rolled = run(batch.x[:, part], noise=drawn, state=state)
            outputs.append(rolled.outputs)
            state = {name: value.detach() for name, value in rolled.final.items()}
        losses = task.loss(torch.cat(outputs, dim=1), batch)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return losses.detach(), dict(zip(leaves, found, strict=True))

    def why_not(self, family: Family, task: Task | None) -> str | None:
        """See the base; a window must be shorter than the sequences."""
        if task is not None and self.window >= task.num_steps:
            return f"`window` (={self.window}) must be below the task's {task.num_steps} steps; beyond, choose BPTT."
        return super().why_not(family, task)
