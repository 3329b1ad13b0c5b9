"""Backpropagation through time over a stack of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, Streams
from weightspace.spec import Params
from zoo_builder.labels.base import LabelColumn
from zoo_builder.learning.base import Learned, Learner, fresh_params, sorted_snapshots
from zoo_builder.learning.exams import Exams
from zoo_builder.learning.lessons import Lessons
from zoo_builder.learning.schedule import Schedule
from zoo_builder.tasks import Task

SETTINGS_ABOVE_0 = ("learning_rate", "init_scale")
KEPT = 3
"""About how many numbers autograd keeps for each weighted sum of a step: itself, and what comes of it."""


@dataclass(frozen=True, kw_only=True)
class BPTT(Learner):
    """Gradient descent through whole sequences with AdamW, on fresh data at each update (Werbos, Proc. IEEE 1990).

    Every model has its own data, learning rate, weight decay and gradient clipping (by the norm over its trained
    tensors; 0 clips nothing), and its own scale of the initial recurrent matrices (diagonals keep theirs). A model that
    diverges keeps its slot and its last finite params, and the others learn on undisturbed. A `schedule` changes the
    learning rate over the updates; `exams` stop models that have reached a threshold, or lead them up a curriculum.
    """

    num_updates: int = 400
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    clip: float = 1.0
    init_scale: float = 1.0
    schedule: Schedule | None = None
    exams: Exams | None = None

    varying: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "weight_decay", "clip", "init_scale"),
        *("schedule.warm_up", "schedule.final", "exams.threshold"),
    )
    groups: ClassVar[Mapping[str, type]] = {"schedule": Schedule, "exams": Exams}

    def __post_init__(self) -> None:
        for name in ("num_updates", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1.")
        self._check(self._own({}, 1))

    @property
    def columns(self) -> tuple[LabelColumn, ...]:
        return self.exams.columns if self.exams is not None else ()

    @property
    def most_sequences(self) -> int:
        return max(self.batch_size, self.exams.sequences if self.exams is not None else 0)

    def check_task(self, task: Task | None) -> None:
        """See the base; a curriculum needs a task with levels."""
        if self.exams is not None and self.exams.curriculum and (task is None or task.difficulty is None):
            raise ValueError(
                f"{type(task).__name__} declares no `difficulty`, so there is no curriculum for it; leave `curriculum` "
                "out of the exams, or choose a task that has levels."
            )

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
        self.check_task(task)
        steps = sorted_snapshots(snapshots, self.num_updates)
        own = self._own(settings, len(model_ids))
        self._check(own)
        params = {k: v.to(device) for k, v in fresh_params(family, seed, model_ids).items()}
        for name in family.spec.recurrent():
            params[name] = _scaled(params[name], own["init_scale"])
        lessons = Lessons(self, family, task, values, own, params, Streams(seed, model_ids, "train", device), method)
        kept: list[Params] = []
        lessons.examine()
        for step in steps:
            while lessons.updates < step:
                before = lessons.updates
                lessons.go_on(step)
                for number in range(before, lessons.updates):
                    if progress is not None:
                        progress(number + 1)
                lessons.examine()
            kept.append(lessons.snapshot())
        stacked = {name: torch.stack([params[name] for params in kept], dim=1) for name in family.spec.tensors}
        return Learned(steps, stacked, lessons.optimiser.diverged_step.cpu(), lessons.records())

    def _own(self, settings: Mapping[str, Tensor], num_models: int) -> dict[str, Tensor]:
        """Each model's own settings (models,), float64, but those of groups that are not used."""
        unused = {group for group in self.groups if getattr(self, group) is None}
        names = [name for name in self.varying if name.partition(".")[0] not in unused]
        return {name: self.setting(name, settings, num_models) for name in names}

    def bytes_per_model(self, family: Family, task: Task | None) -> int:
        assert task is not None
        spec = family.spec
        sums = sum(spec.num_rows(name) * spec.axes[to].size for name, to, _ in spec.matrices())
        return 4 * KEPT * sums * task.num_steps * self.batch_size

    def _check(self, own: Mapping[str, Tensor]) -> None:
        for name, tensor in own.items():
            wrong = ~tensor.isfinite() | (tensor < 0) | ((tensor == 0) if name in SETTINGS_ABOVE_0 else False)
            if bool(wrong.any()):
                bound = "above 0" if name in SETTINGS_ABOVE_0 else "0 or more"
                raise ValueError(f"`{name}` (={tensor[wrong][0]:g}) must be a finite number {bound}.")
        if "schedule.warm_up" in own and bool((own["schedule.warm_up"] >= self.num_updates).any()):
            raise ValueError(
                f"`schedule.warm_up` (={own['schedule.warm_up'].max():g}) must be below `num_updates` "
                f"(={self.num_updates})."
            )


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
