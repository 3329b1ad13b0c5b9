"""The contract of a learner, which makes the params of a whole cohort."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, generator
from weightspace.spec import Params
from zoo_builder.fields import refuse_below_least
from zoo_builder.labels.base import LabelColumn
from zoo_builder.members import Members
from zoo_builder.tasks import Task


@dataclasses.dataclass(frozen=True)
class Learned:
    """Snapshots of a cohort after learning, with the records of divergence and of exams."""

    steps: tuple[int, ...]
    """Number of updates made before each snapshot, ascending."""
    params: Params
    """Params (models, snapshots, ...) as stored, float32, on the CPU."""
    diverged_step: Tensor
    """Number of the first update that failed (models,), int64, -1 where none did.

    Snapshots at that step and later hold the last finite params.
    """
    records: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Values of the learner's `columns` (models, snapshots), float64, NaN for null."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Device, rollout method and progress callback of a run."""

    device: torch.device | str = "cpu"
    method: Method = "stacked"
    progress: Callable[[int], None] | None = None
    """Called after every update with the number of updates made."""


HERE = Run()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner(ABC):
    """A learner: the method by which params are found. Subclasses are frozen dataclasses whose fields are its settings.

    The fields named in `varying` may differ between the models of one cohort; `Members` hold their values per model.
    A field of a group of options is named with its group, as in `exams.threshold`. A field may declare its least value,
    `field(default=16, metadata={"least": 1})`.
    """

    varying: ClassVar[tuple[str, ...]] = ()
    groups: ClassVar[Mapping[str, type]] = {}
    """Fields that are groups of options, each a frozen dataclass, or None where the group is not used."""
    needs_task: ClassVar[bool] = True
    takes_task: ClassVar[bool] = True
    """Whether models may have a task, which drives them when labels are measured, even if none is needed."""
    makes_params: ClassVar[bool] = True
    """Whether it finds params, which a build can then repeat; others come from files."""

    def __post_init__(self) -> None:
        refuse_below_least(self)

    @abstractmethod
    def learn(
        self, family: Family, task: Task | None, members: Members, snapshots: Sequence[int], run: Run = HERE
    ) -> Learned:
        """Params of some models after the numbers of updates in `snapshots` (0: before the first).

        Params of a model depend on its own values, settings and first params, on the seed and on its id alone.
        Learning ends with the last snapshot.
        """

    def updates_behind(self, step: int) -> int:
        """Number of updates that the params of the snapshot `step` have behind them; of 0 they are untrained."""
        return step

    @property
    def most_sequences(self) -> int:
        """Largest number of sequences of one model in one rollout."""
        return 1

    def bytes_per_model(self, family: Family, task: Task | None) -> int:
        """Memory (bytes, roughly) of one model of a stack while it learns, its params not counted."""
        return 0

    @property
    def columns(self) -> tuple[LabelColumn, ...]:
        """Columns, beside the labels, that the learner records of every model."""
        return ()

    def why_not(self, family: Family, task: Task | None) -> str | None:
        """Reason why this learner cannot train a family on a task, with the way out; None if it can."""
        return None

    @final
    def check(self, family: Family, task: Task | None) -> None:
        """Raise ValueError where this learner cannot train a family on a task."""
        reason = self.why_not(family, task)
        if reason is not None:
            on = "" if task is None else f" on {type(task).__name__}"
            raise ValueError(f"{type(self).__name__} cannot train {type(family).__name__}{on}: {reason}")

    @property
    def config(self) -> dict[str, Any]:
        """The fields of this instance, without groups that are not used; `learning.load` rebuilds it from them."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def setting(self, field: str, members: Members) -> Tensor:
        """Each model's value of one varying field, (models,), float64."""
        if field in members.settings:
            return members.settings[field].to(torch.float64)
        return torch.full((len(members.ids),), float(attrgetter(field)(self)), dtype=torch.float64)


def fresh_params(family: Family, seed: int, model_ids: Sequence[str]) -> Params:
    """Initial params (models, ...) of the models, each from its own stream "init"; ValueError if one does not fit."""
    models = [family.init(generator(seed, model_id, "init")) for model_id in model_ids]
    for model in models:
        try:
            family.spec.check(model, stacked=False)
        except ValueError as error:
            raise ValueError(f"`init` of {type(family).__name__} does not fit its declaration: {error}") from None
    return {name: torch.stack([model[name] for model in models]) for name in family.spec.tensors}


def sorted_snapshots(snapshots: Sequence[int], last: int) -> tuple[int, ...]:
    """Steps of the snapshots, ascending; ValueError if there are none, or one is beyond `last` updates."""
    steps = tuple(sorted(set(snapshots)))
    if not steps or steps[0] < 0 or steps[-1] > last:
        raise ValueError(f"Snapshots {list(snapshots)} must be one or more numbers of updates from 0 to {last}.")
    return steps
