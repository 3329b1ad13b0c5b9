"""Backpropagation through time over a stack of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Captured, Method, Streams, native
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.spec import Params
from zoo_builder.labels.base import LabelColumn
from zoo_builder.learning.base import Learned, Learner, fresh_params, sorted_snapshots
from zoo_builder.learning.exams import Examination, Exams
from zoo_builder.learning.optimiser import Due, StackedAdamW, Standing
from zoo_builder.learning.schedule import Schedule
from zoo_builder.tasks import Batch, Task
from zoo_builder.tasks.noise import draw_noise

SETTINGS_ABOVE_0 = ("learning_rate", "init_scale")
KEPT = 3
"""About how many numbers autograd keeps for each weighted sum of a step: itself, and what comes of it."""
UPDATES_PER_DRAW = 8
"""Number of updates whose data are drawn together, because a draw costs much the same for few sequences as for many."""


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
        lessons = _Lessons(self, family, task, values, own, params, Streams(seed, model_ids, "train", device), method)
        kept: list[Params] = []
        for update in range(steps[-1] + 1):
            lessons.examine(update)
            if update in steps:
                kept.append(lessons.snapshot())
            if update < steps[-1]:
                lessons.update(update)
                if progress is not None:
                    progress(update + 1)
        stacked = {name: torch.stack([params[name] for params in kept], dim=1) for name in family.spec.tensors}
        return Learned(steps, stacked, lessons.optimiser.diverged_step.cpu(), lessons.records())

    def batches(self, task: Task, lessons: Callable[[], Mapping[str, Tensor]], streams: Streams) -> Iterator[Batch]:
        """Fresh batches without end, of the values of the task's varying fields that `lessons` gives at each draw."""
        update = 0
        while True:
            ahead = UPDATES_PER_DRAW
            if self.exams is not None and self.exams.curriculum:
                # What an exam may change is not drawn before it.
                ahead = min(ahead, self.exams.every - update % self.exams.every)
            yield from task.sample(lessons(), streams, ahead * self.batch_size, "train").split(self.batch_size)
            update += ahead

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


class _Lessons:
    """A stack of models while it learns: params, optimiser, data and exams."""

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
        self._family, self._streams = family, streams
        self._fixed = {name: tensor for name, tensor in params.items() if name not in family.spec.trained}
        settings = (own["learning_rate"], own["weight_decay"], own["clip"])
        fused = method == "native" and streams.device.type == "cpu" and native.why_not(family) is None
        self.optimiser = StackedAdamW(family.spec, params, *settings, fused=fused)
        self._examination: Examination | None = None
        if learner.exams is not None:
            exam = Streams(streams.seed, streams.model_ids, "exam", streams.device)
            self._examination = Examination(learner.exams, own["exams.threshold"], family, task, values, exam, method)
        self._rate: Callable[[int], Tensor | None] = lambda update: None
        if learner.schedule is not None:
            warm_up, final = (own[f"schedule.{name}"].to(streams.device) for name in ("warm_up", "final"))
            self._rate = partial(learner.schedule.factor, num_updates=learner.num_updates, warm_up=warm_up, final=final)
        self._own_values = values
        self._batches = learner.batches(task, lambda: self.values, streams)
        # All that differs between updates is an argument, so that one capture serves them all.
        self._updated = Captured(partial(_updated, family, task, method, self.optimiser))
        self._anyone_learns = True

    @property
    def values(self) -> Mapping[str, Tensor]:
        """The values of the task's varying fields that the models learn now, (models,)."""
        return self._own_values if self._examination is None else self._examination.values

    @property
    def params(self) -> Params:
        """All tensors (models, ...) as they are now."""
        return self._fixed | self.optimiser.params()

    def examine(self, update: int) -> None:
        """Hold the exam that is due after so many updates, if there is one and anyone to take it."""
        if self._anyone_learns and self._examination is not None and self._examination.due(update):
            stops = self._examination.hold(update, self.params, self.optimiser.standing.learning)
            self.optimiser.stop(stops)
            self._anyone_learns = bool(self.optimiser.standing.learning.any())

    def snapshot(self) -> Params:
        """A copy of all tensors on the CPU, and a note of where every model stands."""
        if self._examination is not None:
            self._examination.note()
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.params.items()}

    def update(self, update: int) -> None:
        """Make an update, unless every model has stopped or diverged, for then none would move."""
        if update % UPDATES_PER_DRAW == 0:
            self._anyone_learns = bool(self.optimiser.standing.learning.any())
        if not self._anyone_learns:
            return
        batch = next(self._batches)
        noise = draw_noise(self._family.spec, self._streams, *batch.x.shape[1:3])
        due = self.optimiser.due(self._rate(update))
        self.optimiser.standing = self._updated(self._fixed, self.optimiser.standing, due, batch, noise)

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
