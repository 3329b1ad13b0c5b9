"""The plain reference: one model after another, one step after another."""

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
class Sequential(RolloutMethod):
    """Every model on its own, exactly as the family states it. See `rollout` for shapes."""

    def run(
        self, family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], state: State | None
    ) -> Rollout:
        """Outputs and states of all models; see `rollout` for shapes."""
        runs = []
        for model in range(x.shape[0]):
            own_state = None if state is None else {k: v[model] for k, v in state.items()}
            own_noise = {k: v[model] for k, v in noise.items()}
            runs.append(
                _run_one(family, {k: v[model] for k, v in params.items()}, x[model], start[model], own_noise, own_state)
            )
        outputs = torch.stack([outputs for outputs, _, _ in runs])
        states = {k: torch.stack([states[k] for _, states, _ in runs]) for k in runs[0][1]}
        final = {k: torch.stack([final[k] for _, _, final in runs]) for k in runs[0][2]}
        return Rollout(outputs, states, final)



def _run_one(
    family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], state: State | None
) -> tuple[Tensor, State, State]:
    state = family.initial_state(params, start) if state is None else state
    visited, outputs = [], []
    for t in range(x.shape[0]):
        state = family.step(params, state, x[t], {k: v[t] for k, v in noise.items()})
        visited.append(state)
        outputs.append(family.readout(params, state))
    return torch.stack(outputs), {k: torch.stack([s[k] for s in visited]) for k in state}, state
