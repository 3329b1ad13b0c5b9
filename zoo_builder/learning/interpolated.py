"""Interpolated params: points on the line between two trained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.spec import Params, WeightSpec
from zoo_builder.learning.base import HERE, Learned, Learner, Run, sorted_snapshots
from zoo_builder.learning.bptt import BPTT
from zoo_builder.members import Members
from zoo_builder.tasks import Task

PREFIX = "training."
ENDS = BPTT(num_updates=100)


@dataclass(frozen=True, kw_only=True)
class Interpolated(Learner):
    """Points (1 - m) A + m B on the line between two trained models A and B, m being each model's `mixing`.

    Both ends of a model learn its task by `training`, to the last update, each from fresh params and data of its own;
    tensors that are not trained, such as masks, B has from A, with its own weights on A's connections. B keeps its own
    order of units, so that a point between the ends mixes units that are no counterparts, and is no solution as a rule
    (Goodfellow et al., ICLR 2015, arXiv 1412.6544; Ainsworth et al., ICLR 2023, arXiv 2209.04836). A model is
    `diverged` where an end of it is.
    """

    training: BPTT = ENDS
    """Training of the ends."""
    mixing: float = 0.5
    """Place on the line, from 0 at A to 1 at B."""

    varying: ClassVar[tuple[str, ...]] = (
        "mixing",
        *(PREFIX + name for name in ("learning_rate", "weight_decay", "clip", "init_scale")),
    )
    groups: ClassVar[Mapping[str, type]] = {"training": BPTT}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"`mixing` (={self.mixing}) must be from 0 to 1.")

    @property
    def most_sequences(self) -> int:
        return self.training.most_sequences

    def updates_behind(self, step: int) -> int:
        """Number of updates of both ends, whatever the snapshot."""
        return 2 * self.training.num_updates

    def bytes_per_model(self, family: Family, task: Task | None) -> int:
        return self.training.bytes_per_model(family, task)

    def why_not(self, family: Family, task: Task | None) -> str | None:
        """Reason why the ends cannot be trained; see the base."""
        return self.training.why_not(family, task)

    def learn(
        self, family: Family, task: Task | None, members: Members, snapshots: Sequence[int], run: Run = HERE
    ) -> Learned:
        self.check(family, task)
        steps = sorted_snapshots(snapshots, 0)
        first, second = self._ends(family, task, members, run)
        mixing = self.setting("mixing", members)
        params = {name: between(value, second.params[name], mixing) for name, value in first.params.items()}
        failed = (first.diverged_step >= 0) | (second.diverged_step >= 0)
        return Learned(steps, params, torch.where(failed, 0, -1))

    def _ends(self, family: Family, task: Task | None, members: Members, run: Run) -> tuple[Learned, Learned]:
        """Both ends of every model, trained, as they are after the last update."""
        settings = {
            name.removeprefix(PREFIX): value for name, value in members.settings.items() if name.startswith(PREFIX)
        }
        ends = [
            Members(members.seed, [f"{model_id}/{end}" for model_id in members.ids], members.values, settings)
            for end in ("a", "b")
        ]
        starts = [self.training.first_params(family, end) for end in ends]
        starts[1] = sharing(family.spec, starts[1], starts[0])
        last = [self.training.num_updates]
        first, second = (
            self.training.learn(family, task, Members(end.seed, end.ids, end.values, end.settings, start), last, run)
            for end, start in zip(ends, starts, strict=True)
        )
        return first, second


def sharing(spec: WeightSpec, params: Params, other: Params) -> Params:
    """Params (models, ...) with what is not trained of other ones, and weights on all the connections of these."""
    shared = params | {name: value for name, value in other.items() if name not in spec.trained}
    for name, mask in ((name, spec.tensors[name].mask) for name in spec.trained):
        if mask is not None:
            models = zip(params[name], params[mask], other[mask], strict=True)
            shared[name] = torch.stack([moved(*model) for model in models])
    return shared


def between(first: Tensor, second: Tensor, mixing: Tensor) -> Tensor:
    """Points (models, ...) between tensors of both ends; ends, and what they share, stay to the last bit."""
    share = mixing.reshape(-1, *[1] * (first.dim() - 1))
    return ((1 - share) * first.double() + share * second.double()).to(first)


def moved(weight: Tensor, mask: Tensor, other: Tensor) -> Tensor:
    """The weights of one model's tensor, drawn under a mask, under another one; all three have the same shape.

    Connections of both masks keep their weights, others get those of connections that are lost; where there are too few
    of these, weights come twice.
    """
    drawn, wanted = mask != 0, other != 0
    weights = torch.cat([weight[drawn & ~wanted], weight[drawn & wanted]])
    placed = torch.where(wanted, weight, 0)
    if len(weights):
        new = wanted & ~drawn
        placed[new] = weights[torch.arange(int(new.sum())) % len(weights)]
    return placed
