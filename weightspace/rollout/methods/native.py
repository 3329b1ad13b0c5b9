"""Models in C, one after another, each with its whole time loop in cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.methods.base import RolloutMethod
from weightspace.rollout.native.availability import unusable
from weightspace.rollout.native.function import run_native
from weightspace.rollout.results import Rollout
from weightspace.spec import Params, State


@dataclass(frozen=True, kw_only=True)
class Native(RolloutMethod):
    """A family's step, traced once and run in C; 1e-10 from the reference in float64, 2e-5 in float32 (relative)."""

    def why_not(self, family: Family, x: Tensor) -> str | None:
        """Reason why inputs like x cannot be run natively, logged once as a warning; None if they can."""
        return unusable(family, x)

    def run(
        self, family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], state: State | None
    ) -> Rollout:
        """Outputs and states of all models; see `rollout` for shapes."""
        return run_native(family, params, x, start, noise, state)
