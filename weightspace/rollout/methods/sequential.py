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
    """One call of the family's `step` per model and time step. See `rollout` for shapes."""

    def run(
        self, family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], state: State | None
    ) -> Rollout:
        """Outputs and states of all models; see `rollout` for shapes."""
        runs = []
        for model in range(x.shape[0]):
            first = None if state is None else _of_model(model, state)
            runs.append(
                _run_model(family, _of_model(model, params), x[model], start[model], _of_model(model, noise), first)
            )
        outputs = torch.stack([run.outputs for run in runs])
        states = {name: torch.stack([run.states[name] for run in runs]) for name in runs[0].states}
        final = {name: torch.stack([run.final[name] for run in runs]) for name in runs[0].final}
        return Rollout(outputs, states, final)


def _of_model(model: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[model] for name, value in tensors.items()}


def _run_model(
    family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], state: State | None
) -> Rollout:
    """The rollout of one model: the same shapes without the models axis."""
    state = family.initial_state(params, start) if state is None else state
    visited, outputs = [], []
    for t in range(x.shape[0]):
        state = family.step(params, state, x[t], {k: v[t] for k, v in noise.items()})
        visited.append(state)
        outputs.append(family.readout(params, state))
    return Rollout(torch.stack(outputs), {k: torch.stack([s[k] for s in visited]) for k in state}, state)
