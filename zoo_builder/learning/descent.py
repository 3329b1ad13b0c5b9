"""Gradient descent over a stack of models: data, exams, optimiser and snapshots, for any method of gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, Streams, native
from weightspace.spec import Params, WeightSpec
from zoo_builder.labels.base import LabelColumn
from zoo_builder.learning.base import HERE, Learned, Learner, Run, fresh_params, sorted_snapshots
from zoo_builder.learning.batches import Exercise
from zoo_builder.learning.exams import Examination, Exams
from zoo_builder.learning.optimiser import Hyperparameters, StackedAdamW
from zoo_builder.learning.schedule import Schedule
from zoo_builder.learning.training import Training
from zoo_builder.learning.updates import BatchUpdates, Rate, Updates
from zoo_builder.members import Members
from zoo_builder.tasks import Batch, Task

SETTINGS_ABOVE_0 = ("learning_rate", "init_scale")
KEPT = 3
"""Numbers that autograd keeps for each weighted sum of a step, roughly: the sum and the results of its maps."""


@dataclass(frozen=True, kw_only=True)
class Trained(Learner):
    """Training with AdamW, on fresh data at each update; a subclass says what an update is.

    Every model has its own data, learning rate, weight decay and gradient clipping (by the norm over its trained
    tensors; 0 clips nothing), and its own scale of the initial recurrent matrices (diagonals keep theirs; params that
    `Members` give are taken as they are). A model that diverges keeps its slot and its last finite params, and the
    others learn on undisturbed. A `schedule` changes the learning rate over the updates; `exams` stop models that have
    reached a threshold, or lead them up a curriculum.
    """

    num_updates: int = field(default=400, metadata={"least": 1})
    """Number of updates, by which a schedule runs out; none is made beyond the last snapshot."""
    batch_size: int = field(default=16, metadata={"least": 1})
    """Fresh sequences of each update."""
    learning_rate: float = 3e-3
    """Step size of AdamW, above 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW, 0 or above."""
    clip: float = 1.0
    """Largest norm of a model's gradient over its trained tensors; 0 clips nothing."""
    init_scale: float = 1.0
    """Factor of the initial recurrent matrices, above 0."""
    schedule: Schedule | None = None
    """How the learning rate changes over the updates; null: it stays."""
    exams: Exams | None = None
    """Exams that stop models or lead them up a curriculum; null: none are held."""

    varying: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "weight_decay", "clip", "init_scale"),
        *("schedule.warm_up", "schedule.final", "exams.threshold"),
    )
    groups: ClassVar[Mapping[str, type]] = {"schedule": Schedule, "exams": Exams}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_settings(self._settings(Members(0, ["any"])))

    @abstractmethod
    def updates(self, exercise: Exercise, optimiser: StackedAdamW, fixed: Params, method: Method) -> Updates:
        """Updates of a stack of models; `fixed` are the tensors (models, ...) that are not trained."""

    def all_trained(self, family: Family, params: Params) -> tuple[WeightSpec, Params]:
        """All that learns, with its first values (models, ...): the family, and what a learner needs beside it."""
        return family.spec, params

    @property
    def mask_updates(self) -> Sequence[int]:
        """Numbers of updates after which `masks` is called; 0 is before the first."""
        return ()

    def masks(self, family: Family, params: Params, update: int) -> Params:
        """New values (models, ...) of tensors with the role `mask`, from all params (models, ...), after an update.

        They hold from the snapshot at that update on; models that learn no more keep theirs. Each model's masks depend
        on its own params alone.
        """
        return {}

    @property
    def columns(self) -> tuple[LabelColumn, ...]:
        return self.exams.columns if self.exams is not None else ()

    @property
    def most_sequences(self) -> int:
        return max(self.batch_size, self.exams.sequences if self.exams is not None else 0)

    def why_not(self, family: Family, task: Task | None) -> str | None:
        """Reason why a task is needed, has other sizes or lacks the levels of a curriculum; see the base."""
        if task is None:
            return "it needs a task; add `tasks` to the recipe or choose a learner that needs none."
        for size in ("input_size", "output_size"):
            if getattr(family, size) != getattr(task, size):
                return (
                    f"`{size}` of {type(family).__name__} is {getattr(family, size)}, "
                    f"but {type(task).__name__} needs {getattr(task, size)}."
                )
        if family.reads_start != task.start_size:
            return (
                f"{type(task).__name__} gives a start of size {task.start_size} to the first state, of which "
                f"{type(family).__name__} reads {family.reads_start}; choose a family with a `start_size`, such as "
                "NoisyRNN, for tasks that give one, and `start_size` 0 for those that do not."
            )
        if self.exams is not None and self.exams.curriculum and task.difficulty is None:
            return (
                f"{type(task).__name__} declares no `difficulty`, so there is no curriculum for it; leave `curriculum` "
                "out of the exams, or choose a task that has levels."
            )
        return None

    def learn(
        self, family: Family, task: Task | None, members: Members, snapshots: Sequence[int], run: Run = HERE
    ) -> Learned:
        self.check(family, task)
        assert task is not None
        steps = sorted_snapshots(snapshots, self.num_updates)
        settings = self._settings(members)
        self._check_settings(settings)
        params = {name: tensor.to(run.device) for name, tensor in self.first_params(family, members).items()}
        training = self._training(family, task, members, settings, params, run)
        training.begin()
        kept: list[Params] = []
        for step in steps:
            while training.made < step:
                before = training.made
                training.go_on(step)
                for number in range(before, training.made):
                    if run.progress is not None:
                        run.progress(number + 1)
            kept.append(training.snapshot())
        stacked = {name: torch.stack([params[name] for params in kept], dim=1) for name in family.spec.tensors}
        return Learned(steps, stacked, training.updates.optimiser.diverged_step.cpu(), training.records())

    def first_params(self, family: Family, members: Members) -> Params:
        """First params (models, ...): those of `members` unchanged, else fresh ones with each model's `init_scale`."""
        if members.params is not None:
            family.spec.check(members.params, stacked=True)
            counts = {name: len(tensor) for name, tensor in members.params.items()}
            if set(counts.values()) != {len(members.ids)}:
                raise ValueError(f"Params of {len(members.ids)} models are expected to learn from; found {counts}.")
            return dict(members.params)
        params = fresh_params(family, members.seed, members.ids)
        scales = self.setting("init_scale", members)
        for name in (*family.spec.recurrent(), *family.spec.recurrent_products()):
            scale = scales.to(params[name].dtype)
            params[name] = params[name] * scale.reshape(-1, *[1] * (params[name].dim() - 1))
        return params

    def bytes_per_model(self, family: Family, task: Task | None) -> int:
        assert task is not None
        return 4 * KEPT * family.numbers_per_step * task.num_steps * self.batch_size

    def _training(
        self,
        family: Family,
        task: Task,
        members: Members,
        settings: Mapping[str, Tensor],
        params: Params,
        run: Run,
    ) -> Training:
        """Training of the models before their first update, by each one's own settings (models,)."""
        streams = Streams(members.seed, members.ids, "train", run.device)
        exams, method = self.exams, run.method
        examination: Examination | None = None
        if exams is not None:
            exam_streams = Streams(members.seed, members.ids, "exam", run.device)
            threshold = settings["exams.threshold"]
            examination = Examination(exams, threshold, family, task, members.values, exam_streams, method)
        fused = method == "native" and streams.device.type == "cpu" and native.why_not(family) is None
        rate, decay, clip = (settings[name] for name in ("learning_rate", "weight_decay", "clip"))
        optimiser = StackedAdamW(*self.all_trained(family, params), Hyperparameters(rate, decay, clip), fused=fused)
        fixed = {name: tensor for name, tensor in params.items() if name not in family.spec.trained}
        changing = exams.every if exams is not None and exams.curriculum else None
        values = (lambda: members.values) if examination is None else (lambda: examination.values)
        exercise = Exercise(family, task, streams, self.batch_size, values, changing)
        return Training(
            spec=family.spec,
            updates=self.updates(exercise, optimiser, fixed, method),
            rate=self._rate(settings, streams.device),
            examination=examination,
            masks=partial(self.masks, family),
            mask_updates=self.mask_updates,
        )

    def _rate(self, settings: Mapping[str, Tensor], device: torch.device) -> Rate:
        """Factor of the learning rates at each update, None without a schedule."""
        if self.schedule is None:
            return lambda update: None
        warm_up, final = (settings[f"schedule.{name}"].to(device) for name in ("warm_up", "final"))
        return partial(self.schedule.factor, num_updates=self.num_updates, warm_up=warm_up, final=final)

    def _settings(self, members: Members) -> dict[str, Tensor]:
        """Settings of each model (models,), float64, without those of groups that are not used."""
        unused = {group for group in self.groups if getattr(self, group) is None}
        names = [name for name in self.varying if name.partition(".")[0] not in unused]
        return {name: self.setting(name, members) for name in names}

    def _check_settings(self, settings: Mapping[str, Tensor]) -> None:
        for name, tensor in settings.items():
            wrong = ~tensor.isfinite() | (tensor < 0) | ((tensor == 0) if name in SETTINGS_ABOVE_0 else False)
            if bool(wrong.any()):
                bound = "above 0" if name in SETTINGS_ABOVE_0 else "0 or more"
                raise ValueError(f"`{name}` (={tensor[wrong][0]:g}) must be a finite number {bound}.")
        if "schedule.warm_up" in settings and bool((settings["schedule.warm_up"] >= self.num_updates).any()):
            raise ValueError(
                f"`schedule.warm_up` (={settings['schedule.warm_up'].max():g}) must be below `num_updates` "
                f"(={self.num_updates})."
            )


@dataclass(frozen=True, kw_only=True)
class Descent(Trained):
    """Gradient descent on fresh sequences at each update; a subclass says how gradients are found.

    Settings, exams and snapshots are those of `Trained`.
    """

    native_updates: ClassVar[bool] = False
    """Whether `gradients` are those of whole sequences, so that C can make whole updates."""

    @abstractmethod
    def gradients(
        self,
        family: Family,
        task: Task,
        params: Params,
        batch: Batch,
        noise: Mapping[str, Tensor],
        method: Method,
    ) -> tuple[Tensor, Params]:
        """Losses (models,) on a batch and their gradients (models, ...) by trained tensor.

        `params` are all tensors (models, ...), `noise[name]` (models, time, batch, axis). Pure, without random numbers
        and without reading values on the host, so that it can be captured on CUDA; no model touches another.
        """

    def updates_natively(self, family: Family) -> bool:
        """Whether C can make whole updates of a family, because `gradients` are its own on whole sequences."""
        return self.native_updates

    def updates(self, exercise: Exercise, optimiser: StackedAdamW, fixed: Params, method: Method) -> Updates:
        gradients = partial(self.gradients, exercise.family, exercise.task, method=method)
        family = exercise.family
        natively = optimiser.is_fused and self.updates_natively(family) and native.can_descend_on(family)
        return BatchUpdates(exercise, gradients, optimiser, fixed, natively=natively)
