"""Imported params: models that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from weightspace.families import Family
from zoo_builder.learning.base import HERE, Learned, Learner, Run
from zoo_builder.members import Members
from zoo_builder.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Imported(Learner):
    """Params of models that were trained elsewhere, which `zoo-builder import` reads from files.

    Their number of updates is not known: their `step` is 1, because 0 means untrained.
    """

    needs_task: ClassVar[bool] = False
    takes_task: ClassVar[bool] = False
    makes_params: ClassVar[bool] = False
    num_updates: ClassVar[int] = 1

    def learn(
        self, family: Family, task: Task | None, members: Members, snapshots: Sequence[int], run: Run = HERE
    ) -> Learned:
        raise ValueError(
            "Imported models were trained elsewhere, so that no recipe makes them; make their zoo with `zoo-builder "
            "import --state_dicts DIR --out ZOO`."
        )
