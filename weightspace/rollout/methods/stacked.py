"""Many models as one computation: the family's step is mapped over the models axis once and replayed over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.methods.base import RolloutMethod
from weightspace.rollout.results import Rollout
from weightspace.spec import Params, State


@dataclass(frozen=True, kw_only=True)
class Stacked(RolloutMethod):
    """All models together, one time step after another. See `rollout` for shapes."""

    def run(
        self, family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], state: State | None
    ) -> Rollout:
        """Outputs and states of all models; see `rollout` for shapes."""
        step = torch.func.vmap(family.step)
        if state is None:
            state = torch.func.vmap(family.initial_state)(params, start)
        visited = []
        for t in range(x.shape[1]):
            state = step(params, state, x[:, t], {k: v[:, t] for k, v in noise.items()})
            visited.append(state)
        states = {k: torch.stack([s[k] for s in visited], dim=1) for k in state}
        # Time and batch are one axis to a read-out, which has no memory.
        flat = {k: v.flatten(1, 2) for k, v in states.items()}
        outputs = torch.func.vmap(family.readout)(params, flat)
        return Rollout(outputs.unflatten(1, x.shape[1:3]), states, state)
