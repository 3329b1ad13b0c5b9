"""Untrained params: initial ones, before learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightspace.families import Family
from zoo_builder.learning.base import HERE, Learned, Learner, Run, fresh_params, sorted_snapshots
from zoo_builder.members import Members
from zoo_builder.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Untrained(Learner):
    """Fresh params, every trained tensor without bounds times `gain`; nothing is learned.

    Initialisations of U(-1/sqrt(hidden), 1/sqrt(hidden)) have variance 1/(3 hidden), with a gain of sqrt(3) 1/hidden.
    """

    gain: float = 1.0
    """Factor on every trained tensor without bounds."""

    needs_task: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.gain < math.inf:
            raise ValueError(f"`gain` (={self.gain}) must be above 0 and finite.")

    def learn(
        self, family: Family, task: Task | None, members: Members, snapshots: Sequence[int], run: Run = HERE
    ) -> Learned:
        self.check(family, task)
        steps, tensors = sorted_snapshots(snapshots, 0), family.spec.tensors
        params = fresh_params(family, members.seed, members.ids)
        scaled = {name for name in family.spec.trained if tensors[name].domain in ("real", "even")}
        stacked = {
            name: (value * self.gain if name in scaled else value)[:, None] for name, value in params.items()
        }
        return Learned(steps, stacked, torch.full((len(members.ids),), -1, dtype=torch.int64))
