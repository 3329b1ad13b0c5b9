"""Backpropagation through time over a stack of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Captured, Method, Streams, rollout
from weightspace.spec import Params
from zoo_builder.learning.base import Learned, Learner, fresh_params, sorted_snapshots
from zoo_builder.learning.optimiser import Due, StackedAdamW, Standing
from zoo_builder.tasks import Batch, Task
from zoo_builder.tasks.noise import draw_noise

SETTINGS_ABOVE_0 = ("learning_rate", "init_scale")
UPDATES_PER_DRAW = 8
"""Number of updates whose data are drawn together, because a draw costs much the same for few sequences as for many."""


@dataclass(frozen=True, kw_only=True)
class BPTT(Learner):
    """Gradient descent through whole sequences with AdamW, on fresh data at each update (Werbos, Proc. IEEE 1990).

    Every model has its own data, learning rate, weight decay and gradient clipping (by the norm over its trained
    tensors; 0 clips nothing), and its own scale of the initial recurrent matrices (diagonals keep theirs). A model that
    diverges keeps its slot and its last finite params, and the others learn on undisturbed.
    """

    num_updates: int = 400
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    clip: float = 1.0
    init_scale: float = 1.0

    varying: ClassVar[tuple[str, ...]] = ("learning_rate", "weight_decay", "clip", "init_scale")

    def __post_init__(self) -> None:
        for name in ("num_updates", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1.")
        self._check({name: torch.tensor([float(getattr(self, name))]) for name in self.varying})

    def learn(
        self,
        family: Family,
        task: Task | None,
        values: Mapping[str, Tensor],
        settings: Mapping[str, Tensor],
        seed: int,
        model_ids: Sequence[str],
        snapshots: Sequence[int],
        device: torch.device | str = "cpu",
        method: Method = "stacked",
        progress: Callable[[int], None] | None = None,
    ) -> Learned:
        if task is None:
            raise ValueError("BPTT needs a task; add `tasks` to the recipe or choose a learner that needs none.")
        _check_sizes(family, task)
        steps = sorted_snapshots(snapshots, self.num_updates)
        own = {name: self.setting(name, settings, len(model_ids)) for name in self.varying}
        self._check(own)
        params = {k: v.to(device) for k, v in fresh_params(family, seed, model_ids).items()}
        for name in family.spec.recurrent():
            params[name] = _scaled(params[name], own["init_scale"])
        optimiser = StackedAdamW(family.spec, params, own["learning_rate"], own["weight_decay"], own["clip"])
        streams = Streams(seed, model_ids, "train", device)
        fixed = {name: tensor for name, tensor in params.items() if name not in family.spec.trained}
        # All that differs between updates is an argument, so that one capture serves them all.
        updated = Captured(partial(_updated, family, task, method, optimiser))
        kept: list[Params] = []
        for update in range(self.num_updates + 1):
            if update in steps:
                current = params | optimiser.params()
                kept.append({name: tensor.to("cpu", copy=True) for name, tensor in current.items()})
            if update == steps[-1]:
                break
            if update % UPDATES_PER_DRAW == 0:
                drawn = task.sample(values, streams, UPDATES_PER_DRAW * self.batch_size, "train")
                batches = drawn.split(self.batch_size)
            batch = batches[update % UPDATES_PER_DRAW]
            noise = draw_noise(family.spec, streams, *batch.x.shape[1:3])
            optimiser.standing = updated(fixed, optimiser.standing, optimiser.due(), batch, noise)
            if progress is not None:
                progress(update + 1)
        stacked = {name: torch.stack([params[name] for params in kept], dim=1) for name in family.spec.tensors}
        return Learned(steps, stacked, optimiser.diverged_step.cpu())

    def _check(self, own: Mapping[str, Tensor]) -> None:
        for name, tensor in own.items():
            wrong = ~tensor.isfinite() | (tensor < 0) | ((tensor == 0) if name in SETTINGS_ABOVE_0 else False)
            if bool(wrong.any()):
                bound = "above 0" if name in SETTINGS_ABOVE_0 else "0 or more"
                raise ValueError(f"`{name}` (={tensor[wrong][0]:g}) must be a finite number {bound}.")


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
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in optimiser.params(standing).items()}
    outputs = rollout(family, fixed | leaves, batch.x, batch.start, method=method, noise=noise).outputs
    losses = task.loss(outputs, batch)
    # A sum, so that no model's gradient is scaled by how many others there are.
    gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return optimiser.after(standing, due, losses.detach(), dict(zip(leaves, gradients, strict=True)))


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    """A stacked tensor (models, ...) times each model's own scale (models,)."""
    return tensor * scale.to(tensor.device, tensor.dtype).reshape(-1, *[1] * (tensor.dim() - 1))


def _check_sizes(family: Family, task: Task) -> None:
    for size in ("input_size", "output_size"):
        if getattr(family, size) != getattr(task, size):
            raise ValueError(
                f"`{size}` of {type(family).__name__} is {getattr(family, size)}, "
                f"but {type(task).__name__} needs {getattr(task, size)}."
            )
