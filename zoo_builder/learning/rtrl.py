"""Real-time recurrent learning: exact gradients carried forward in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.sensitivities import Sensitivity, memory_of, why_not
from weightspace.spec import Params, State
from zoo_builder.learning.descent import Descent
from zoo_builder.tasks import Batch, Task


@dataclass(frozen=True, kw_only=True)
class RTRL(Descent):
    """Exact gradients without going back in time (Williams and Zipser, Neural Computation 1989), of diagonal families.

    Sensitivities S(t) of each unit's memory to its params are carried along, and a step with error e = dL(t)/ds(t-1)
    adds e S(t-1) to the gradients that stay within the step. As no unit of a diagonal family reads another, S has as
    many numbers for each sequence and state as the params have, whatever the number of steps (Irie, Gopalakrishnan and
    Schmidhuber, ICLR 2024, arXiv 2305.19044). Params change after whole sequences alone, so the gradients are those of
    BPTT; the paper's updates at every step, for which sensitivities are stale, are not made. Settings, data, exams and
    snapshots are those of `Descent`.
    """

    def gradients(
        self, family: Family, task: Task, params: Params, batch: Batch, noise: Mapping[str, Tensor], method: Method
    ) -> tuple[Tensor, Params]:
        """Losses and gradients (see the base), step by step in torch whatever the rollout method."""
        criterion = task.criterion(batch)
        assert criterion is not None
        return online_gradients(family, params, batch.x, batch.start, criterion, noise)

    def why_not(self, family: Family, task: Task | None) -> str | None:
        """See the base; sensitivities must stay within units, and the loss must be a sum over steps."""
        if task is not None and type(task).criterion is Task.criterion:
            return f"{type(task).__name__} declares no criterion, which is a sum over steps; choose BPTT."
        return super().why_not(family, task) or why_not(family)

    def bytes_per_model(self, family: Family, task: Task | None) -> int:
        return carried_bytes(family, self.batch_size)


def carried_bytes(family: Family, batch_size: int) -> int:
    """Memory (bytes, roughly) of the sensitivities of one model while they are carried one step on."""
    memory = memory_of(family)
    numbers = sum(torch.Size(family.spec.shape(name)).numel() for name in memory.tensors)
    # The new sensitivities, the old ones, and their product with each Jacobian.
    return 4 * batch_size * numbers * len(memory.states) * (2 + len(memory.states))


def online_gradients(
    family: Family, params: Params, x: Tensor, start: Tensor, criterion: Criterion, noise: Mapping[str, Tensor]
) -> tuple[Tensor, Params]:
    """Losses (models,) on inputs (models, time, batch, input) and gradients (models, ...) of all trained tensors.

    `start` (models, batch, start) and noise as in `rollout`. Nothing that is kept grows with the number of steps.
    """
    sensitivity, params = Sensitivity(family), {name: value.detach() for name, value in params.items()}
    state = torch.func.vmap(family.initial_state)(params, start)
    carried = sensitivity.at_start(params, x.shape[2])
    total = {name: torch.zeros_like(params[name]) for name in family.spec.trained}
    losses, first = x.new_zeros(len(x)), x.shape[1] - criterion.target.shape[1]
    for t in range(x.shape[1]):
        now, drive = x[:, t], {name: value[:, t] for name, value in noise.items()}
        step = (params, state, now, drive)
        if t >= first:
            loss, direct, errors = _scored_step(family, sensitivity.memory.states, _at(criterion, t - first), *step)
            losses = losses + loss
            through = sensitivity.gradients(carried, errors)
            total = {name: value + direct[name] + through.get(name, 0) for name, value in total.items()}
        # No sensitivity is needed behind the last step.
        if t + 1 < x.shape[1]:
            carried = sensitivity.after(carried, *step)
            state = torch.func.vmap(family.step)(*step)
    return losses, total


def _scored_step(
    family: Family,
    memory: tuple[str, ...],
    criterion: Criterion,
    params: Params,
    state: State,
    x: Tensor,
    noise: Mapping[str, Tensor],
) -> tuple[Tensor, Params, State]:
    """Losses (models,) at a step, their gradients within it, and the errors of the memory before it."""
    leaves = {name: params[name].detach().requires_grad_() for name in family.spec.trained}
    before = {name: state[name].detach().requires_grad_() for name in memory}
    with torch.enable_grad():
        after = torch.func.vmap(family.step)({**params, **leaves}, {**state, **before}, x, noise)
        losses = criterion(torch.func.vmap(family.readout)({**params, **leaves}, after)[:, None])
    wanted = [*leaves.values(), *before.values()]
    found = torch.autograd.grad(losses.sum(), wanted, allow_unused=True, materialize_grads=True)
    gradients, errors = found[: len(leaves)], found[len(leaves) :]
    return losses.detach(), dict(zip(leaves, gradients, strict=True)), dict(zip(memory, errors, strict=True))


def _at(criterion: Criterion, step: int) -> Criterion:
    """The part of a criterion that asks for one scored step."""
    part = slice(step, step + 1)
    return dataclasses.replace(criterion, target=criterion.target[:, part], weight=criterion.weight[:, part])
