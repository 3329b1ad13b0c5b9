"""The contract of a task: sequences drawn for many models at once, and how well they are answered."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.rollout.criterion import Criterion
from weightspace.store import InputKind, OutputKind, TaskIO
from zoo_builder.fields import refuse_below_least

Split = Literal["train", "test"]
Policy = Callable[[Tensor], Tensor]
"""A model that acts: inputs (models, batch, input) of one step, float64, to its outputs; it remembers its own state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disturbance:
    """Gaussian noise, new at every step, that a model in a closed loop did not learn with, in standard deviations."""

    observation: float = 0.0
    """On each input."""
    push: float = 0.0
    """On what it does, as a share of the largest it can do."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences for a stack of models; the last `scored` of the `time` steps have an answer to compare with."""

    x: Tensor
    """Inputs (models, time, batch, input), float32."""
    start: Tensor
    """What the task gives the initial state, (models, batch, start), float32."""
    target: Tensor
    """Right answers: classes (models, scored, batch) or, with several heads, (models, scored, batch, head), int64; or
    values (models, scored, batch, output), float32."""
    weight: Tensor | None = None
    """How much each scored step counts for each model, (models, scored), 0 or above; None if all count alike."""

    @property
    def shares(self) -> Tensor:
        """What each scored step counts for in a mean over them, (models, scored), adding up to 1."""
        if self.weight is None:
            return self.x.new_full(self.target.shape[:2], 1 / self.target.shape[1])
        return self.weight / self.weight.sum(1, keepdim=True)

    def narrow(self, first: int, count: int) -> Batch:
        """So many of the sequences, as views."""
        x, target = (tensor.narrow(2, first, count) for tensor in (self.x, self.target))
        return Batch(x, self.start.narrow(1, first, count), target, self.weight)

    def split(self, batch_size: int) -> list[Batch]:
        """The same sequences as several batches of `batch_size`, the last one with what is left."""
        starts, targets = self.start.split(batch_size, 1), self.target.split(batch_size, 2)
        pieces = zip(self.x.split(batch_size, 2), starts, targets, strict=True)
        return [Batch(x.contiguous(), start, target, self.weight) for x, start, target in pieces]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One task. Subclasses are frozen dataclasses whose fields are its parameters.

    The fields named in `varying` may differ between the models of one cohort; `sample` is given their values per model.
    A field may declare its least value, `field(default=5, metadata={"least": 1})`.
    """

    varying: ClassVar[tuple[str, ...]] = ()
    input_kind: ClassVar[InputKind]
    """`one_hot` tokens, or `values`."""
    input_range: ClassVar[tuple[float, float]]
    """Low and high end of the inputs; of inputs without bounds, at least 99% lie inside."""
    output_kind: ClassVar[OutputKind]
    """Whether outputs are the log-odds of classes or values."""
    classes_per_head: ClassVar[int | None] = None
    """Where outputs are the log-odds of several heads side by side: how many each head has. None: there is one head."""
    splits_differ: ClassVar[bool] = True
    """Whether other sequences come under "test" than under "train". False: both are drawn alike, so that there is
    nothing by which training sequences could go better."""
    difficulty: ClassVar[tuple[str, int] | None] = None
    """The varying field, a whole number, that makes the task harder as it grows, and its least value, where a
    curriculum begins. None: the task has no levels."""

    def __post_init__(self) -> None:
        refuse_below_least(self)

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Number of inputs at each step."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Number of outputs at each step."""

    @property
    def start_size(self) -> int:
        """Size of what the task gives the initial state, 0 where it gives nothing."""
        return 0

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Length of a sequence."""

    @property
    def io(self) -> TaskIO:
        """Inputs and outputs, as stacks of models that learned this task carry them."""
        return TaskIO(
            input_kind=self.input_kind,
            input_range=self.input_range,
            input_size=self.input_size,
            output_kind=self.output_kind,
            classes_per_head=self.classes_per_head,
        )

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """Tensors that a zoo keeps, as NAME.KEY, for the task to take by `tasks.kept`; none where fields say all."""
        return {}

    @abstractmethod
    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        """Sequences for the models of `streams`, from whose streams alone the randomness comes.

        `values[field]` (models,), float64: each model's own value of a varying field; fields left out keep the task's.
        No sequence that `split` "test" can draw is drawn under "train" where the sequences come from a finite set,
        unless that whole set is what the task is about.
        """

    def criterion(self, batch: Batch) -> Criterion | None:
        """The loss of a batch, declared, so that a fast rollout can take it in; None if it is computed by `loss`.

        Its targets must depend on their own sequence alone; its weights may depend on the whole batch.
        """
        return None

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What learning minimises, (models,), for outputs (models, time, batch, output): the mean over scored steps."""
        criterion = self.criterion(batch)
        if criterion is None:
            raise NotImplementedError(f"{type(self).__name__} has neither a criterion nor a loss.")
        return criterion(outputs)

    @abstractmethod
    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """How well the task is done, (models,), float64, at most 1, higher is better; NaN if outputs are not finite."""

    def closed_loop(
        self, policy: Policy, streams: Streams, episodes: int, disturbance: Disturbance
    ) -> Tensor | None:
        """Share of the longest time for which models survive their own acts, (models,), float64; None: they cannot act.

        The mean over `episodes` of each model, which start and are disturbed as its own stream says.
        """
        return None

    def mastery(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What an exam judges, on the scale of the score, (models,), float64: the score, unless a task differs."""
        return self.score(outputs, batch)

    @classmethod
    def refuse_undeclared(cls) -> None:
        """Raise ValueError where the class does not say what its inputs and outputs are."""
        missing = [f"`{name}`" for name in ("input_kind", "input_range", "output_kind") if not hasattr(cls, name)]
        if missing:
            raise ValueError(f"The task {cls.__name__} does not declare {', '.join(missing)}; add it to the class.")

    @classmethod
    @abstractmethod
    def examples(cls) -> Sequence[Task]:
        """Small instances that every contract test runs on."""

    @property
    def config(self) -> dict[str, Any]:
        """The fields of this instance, from which `tasks.load` rebuilds it."""
        return dataclasses.asdict(self)

    def value(self, field: str, values: Mapping[str, Tensor], streams: Streams) -> Tensor:
        """Each model's value of one varying field, (models,), float64, on the device of the streams."""
        if field in values:
            return values[field].to(streams.device, torch.float64)
        return torch.full((len(streams),), float(getattr(self, field)), dtype=torch.float64, device=streams.device)

    def whole_value(self, field: str, values: Mapping[str, Tensor], streams: Streams, low: int, high: int) -> Tensor:
        """Each model's value of one varying field, (models,), int64; refused unless whole and from `low` to `high`."""
        value = self.value(field, values, streams)
        wrong = (value != value.round()) | (value < low) | (value > high)
        if bool(wrong.any()):
            raise ValueError(f"`{field}` (={value[wrong][0]:g}) must be a whole number from {low} to {high}.")
        return value.long()

    def extremity(self, values: Mapping[str, Tensor]) -> Tensor | None:
        """How extreme the task of each model is, (models,), from 0 to 1 for the most extreme one.

        Models in the top share are out of distribution. None, unless a task says otherwise: the most extreme models
        are those with a varying field at the top of its range.
        """
        return None
