"""Rollouts that return only the last outputs, the scores or the last states, without gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, rollout
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.native import measures_here, usable
from weightspace.rollout.native.forward import native_outputs, native_states, native_verdicts
from weightspace.spec import Params, State


@torch.no_grad()
def last_outputs(
    family: Family,
    params: Params,
    x: Tensor,
    start: Tensor,
    noise: Mapping[str, Tensor],
    num_steps: int,
    *,
    method: Method = "stacked",
) -> Tensor:
    """Outputs (models, num_steps, batch, output) of the last steps of a rollout; see `rollout` for the other shapes."""
    if is_native(family, x, method):
        return native_outputs(family, params, x, start, noise, num_steps)
    return rollout(family, params, x, start, method=method, noise=noise).outputs[:, -num_steps:]


@torch.no_grad()
def answered(
    family: Family,
    params: Params,
    x: Tensor,
    start: Tensor,
    noise: Mapping[str, Tensor],
    criterion: Criterion,
) -> tuple[Tensor, Tensor]:
    """Accuracy and loss (models,), float64, of native rollouts by a cross-entropy criterion.

    NaN where an output at a step that counts is not finite. See `rollout` for shapes.
    """
    nats, right, questions, nonfinite = native_verdicts(family, params, x, start, noise, criterion).unbind(1)
    return right / questions + nonfinite, nats / x.shape[2] + nonfinite


@torch.no_grad()
def last_states(
    family: Family,
    params: Params,
    x: Tensor,
    state: State,
    noise: Mapping[str, Tensor],
    num_steps: int,
    *,
    method: Method = "stacked",
) -> State:
    """Each state (models, num_steps, batch, axis) after the last steps of a rollout from `state`."""
    if is_native(family, x, method):
        return native_states(family, params, x, state, noise, num_steps)
    step, visited = torch.func.vmap(family.step), []
    for t in range(x.shape[1]):
        state = step(params, state, x[:, t], {name: value[:, t] for name, value in noise.items()})
        if t >= x.shape[1] - num_steps:
            visited.append(state)
    return {name: torch.stack([earlier[name] for earlier in visited], dim=1) for name in state}


def is_native(family: Family, x: Tensor, method: Method) -> bool:
    """Whether this method runs natively on inputs like x."""
    if method != "native":
        return False
    return usable(family, x)


def is_measured_natively(family: Family, x: Tensor, method: Method) -> bool:
    """Whether this method runs natively on inputs like x and also measures trajectories in C."""
    if not is_native(family, x, method):
        return False
    return measures_here()
