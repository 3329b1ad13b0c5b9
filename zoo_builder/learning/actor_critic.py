"""Actor-critic learning: models act in an environment and learn from what they earn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method
from weightspace.rollout.sensitivities import why_not
from weightspace.spec import Axis, Params, TensorSpec, WeightSpec
from zoo_builder.learning.batches import Exercise
from zoo_builder.learning.descent import KEPT, Trained
from zoo_builder.learning.optimiser import StackedAdamW
from zoo_builder.learning.rtrl import carried_bytes
from zoo_builder.learning.segments import CRITIC, Segments, Weighing
from zoo_builder.learning.updates import Rate, Updates
from zoo_builder.tasks import Task
from zoo_builder.tasks.environment import Environment


@dataclass(frozen=True, kw_only=True)
class ActorCritic(Trained):
    """Advantage actor-critic (Mnih et al., ICML 2016, arXiv 1602.01783) with gradients of RTRL or truncated ones.

    A model acts in `batch_size` episodes side by side. After every `segment` steps its params change, by returns that
    the critic completes; episodes go on, and new ones begin where they end. With `gradient` "rtrl" sensitivities are
    carried from segment to segment and reset where an episode begins, as in R2AC (Irie, Gopalakrishnan and Schmidhuber,
    ICLR 2024, arXiv 2305.19044); as there, they are stale: those of earlier steps belong to the params of that time.
    With "truncated" no gradient goes back beyond the segment. All else is the same. The paper corrects for policies
    that have changed since they acted (V-trace); here they have not. The actor is the family's read-out; the critic, a
    linear map of the states that begins at 0, learns with it and is not kept. Settings, exams and snapshots are those
    of `Trained`; exams ask for the expert's actions.
    """

    batch_size: int = field(default=16, metadata={"least": 1})
    """Episodes of a model side by side."""
    gradient: Literal["rtrl", "truncated"] = "rtrl"
    """Whether gradients know what happened before the segment, or stop at its first step."""
    segment: int = field(default=5, metadata={"least": 1})
    """Steps between two updates."""
    discount: float = 0.97
    """Factor by which a reward counts less for each step that it lies ahead, from 0 to 1."""
    value_cost: float = 0.5
    """Weight of the critic's squared error, 0 or above."""
    entropy_bonus: float = 0.01
    """Weight of the entropy of the policy, 0 or above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient not in ("rtrl", "truncated"):
            raise ValueError(f"`gradient` (={self.gradient!r}) must be 'rtrl' or 'truncated'.")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"`discount` (={self.discount:g}) must be from 0 to 1.")
        for name in ("value_cost", "entropy_bonus"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` (={getattr(self, name):g}) must be a finite number, 0 or more.")

    def updates(self, exercise: Exercise, optimiser: StackedAdamW, fixed: Params, method: Method) -> Updates:
        """See the base; steps are made in torch whatever the rollout method, for each waits for the world's answer."""
        assert isinstance(exercise.task, Environment)
        segments = Segments(
            exercise.family,
            exercise.task,
            exercise.streams,
            exercise.values,
            length=self.segment,
            episodes=exercise.batch_size,
            exact=self.gradient == "rtrl",
        )
        weighing = Weighing(self.discount, self.value_cost, self.entropy_bonus)
        return SegmentUpdates(segments, weighing, optimiser, fixed)

    def all_trained(self, family: Family, params: Params) -> tuple[WeightSpec, Params]:
        """See the base: the critic is one more tensor."""
        axis = Axis(size=family.spec.state_size + 1, kind="output")
        axes, tensors = {**family.spec.axes, CRITIC: axis}, {**family.spec.tensors, CRITIC: TensorSpec(axes=(CRITIC,))}
        first: Tensor = next(iter(params.values()))
        critic = first.new_zeros(len(first), axis.size)
        return dataclasses.replace(family.spec, axes=axes, tensors=tensors), {**params, CRITIC: critic}

    def why_not(self, family: Family, task: Task | None) -> str | None:
        """See the base; the task must be an environment, and for RTRL sensitivities must stay within units."""
        reason = super().why_not(family, task)
        if reason is None and not isinstance(task, Environment):
            return f"{type(task).__name__} is no environment to act in; choose one, such as TMaze, or BPTT."
        if reason is None and self.gradient == "rtrl":
            reason = why_not(family)
            return None if reason is None else f"{reason} Or leave RTRL: `gradient: truncated` takes every family."
        return reason

    def bytes_per_model(self, family: Family, task: Task | None) -> int:
        kept = 4 * KEPT * family.numbers_per_step * self.segment * self.batch_size
        return kept + (carried_bytes(family, self.batch_size) if self.gradient == "rtrl" else 0)


class SegmentUpdates(Updates):
    """Updates after every segment."""

    def __init__(self, segments: Segments, weighing: Weighing, optimiser: StackedAdamW, fixed: Params) -> None:
        super().__init__(optimiser, fixed)
        self._segments, self._weighing = segments, weighing
        self._carried = segments.begin(self.params)

    @property
    def params(self) -> Params:
        return {name: value for name, value in super().params.items() if name != CRITIC}

    def make(self, first: int, stop: int, rate: Rate) -> int:
        params = super().params
        losses, gradients, self._carried = self._segments.next(params, self._carried, self._weighing)
        self.optimiser.update(losses, gradients, rate(first))
        return 1
