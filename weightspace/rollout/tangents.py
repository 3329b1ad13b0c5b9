"""Tangent vectors and Jacobians along rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.forward import is_native
from weightspace.rollout.methods import Method
from weightspace.rollout.native.forward import native_jacobians, native_tangents
from weightspace.rollout.results import Measured
from weightspace.spec import Params, State


def joined(parts: Sequence[Measured]) -> Measured:
    """The measurements of several groups of models, concatenated along the models axis."""
    if len(parts) == 1:
        return parts[0]
    visited = [part.visited for part in parts if part.visited is not None]
    return Measured(
        growth=torch.cat([part.growth for part in parts]),
        covariance=torch.cat([part.covariance for part in parts]),
        mean_jacobian=torch.cat([part.mean_jacobian for part in parts]),
        log_norms=torch.cat([part.log_norms for part in parts]),
        visited=torch.cat(visited) if visited else None,
    )


def tangent_rollout(
    family: Family,
    params: Params,
    x: Tensor,
    state: State,
    tangent: State,
    noise: Mapping[str, Tensor],
    *,
    method: Method = "stacked",
) -> tuple[State, State]:
    """States and tangent vectors (models, time, batch, axis) after each step, from those before the first.

    `state` and `tangent` are (models, batch, axis); inputs and noise as in `rollout`. No gradients are kept.
    """
    if is_native(family, x, method):
        wide = {name: value[:, :, None] for name, value in tangent.items()}
        states, moved = native_tangents(family, params, x, state, wide, noise)
        return states, {name: value[:, :, :, 0] for name, value in moved.items()}
    step = torch.func.vmap(partial(_step_with_tangent, family))
    visited, tangents = list[State](), list[State]()
    for t in range(x.shape[1]):
        state, tangent = step(params, state, tangent, x[:, t], {k: v[:, t] for k, v in noise.items()})
        visited.append(state)
        tangents.append(tangent)
    return _stacked(visited), _stacked(tangents)


def push(
    family: Family,
    params: Params,
    x: Tensor,
    state: State,
    directions: Tensor,
    noise: Mapping[str, Tensor],
    *,
    method: Method = "stacked",
) -> Tensor:
    """The Jacobians of one step at states (models, point, axis) times directions (models, direction, point, state).

    In `directions` all states are side by side in the order of the spec. Inputs are (models, point, input).
    """
    if is_native(family, x, method):
        tangent = unflatten(family, directions.transpose(1, 2))
        one_step = {name: value[:, None] for name, value in noise.items()}
        _, moved = native_tangents(family, params, x[:, None], state, tangent, one_step)
        return flatten(family, moved)[:, 0].transpose(1, 2)
    return torch.func.vmap(partial(_push, family))(params, x, flatten(family, state), noise, directions)


def jacobians(
    family: Family,
    params: Params,
    x: Tensor,
    state: State,
    noise: Mapping[str, Tensor],
    *,
    method: Method = "stacked",
) -> Tensor:
    """dh(t+1)/dh(t) at every step of a rollout that starts from `state`, (models, time, batch, to state, from state).

    All states of a model are side by side in the order of the spec. See `rollout` for the other shapes.
    """
    if is_native(family, x, method):
        return native_jacobians(family, params, x, state, noise).transpose(-1, -2)
    step, by_time = torch.func.vmap(family.step), []
    for t in range(x.shape[1]):
        noise_now = {name: value[:, t] for name, value in noise.items()}
        by_time.append(jacobians_at(family, params, x[:, t], flatten(family, state), noise_now))
        state = step(params, state, x[:, t], noise_now)
    return torch.stack(by_time, dim=1)


def flatten(family: Family, state: State) -> Tensor:
    """All states side by side in the order of the spec."""
    return torch.cat([state[name] for name in family.spec.states], dim=-1)


def unflatten(family: Family, flat: Tensor) -> State:
    """States by name, from all of them side by side."""
    spec = family.spec
    pieces = flat.split([spec.size_of_state(name) for name in spec.states], dim=-1)
    return dict(zip(spec.states, pieces, strict=True))


def to_unit(tangent: State) -> tuple[State, Tensor]:
    """Tangent vectors (..., axis) scaled to length 1 over all states together, and the lengths (...) they had."""
    length = torch.stack([value.square().sum(-1) for value in tangent.values()]).sum(0).sqrt()
    # A vanished vector stays 0: its log growth is then minus infinity.
    safe = torch.where(length > 0, length, 1)
    return {name: value / safe[..., None] for name, value in tangent.items()}, length


def _step_with_tangent(
    family: Family, params: Params, state: State, tangent: State, x: Tensor, noise: Mapping[str, Tensor]
) -> tuple[State, State]:
    """One model's state (batch, axis) and tangent vectors one step on."""
    after, moved, *_ = torch.func.jvp(lambda s: family.step(params, s, x, noise), (state,), (tangent,))
    return after, moved


def _push(
    family: Family, params: Params, x: Tensor, state: Tensor, noise: Mapping[str, Tensor], directions: Tensor
) -> Tensor:
    """One model's Jacobians at states (point, state) times directions (direction, point, state)."""

    def step(flat: Tensor) -> Tensor:
        return flatten(family, family.step(params, unflatten(family, flat), x, noise))

    tangents: Tensor = torch.func.vmap(lambda direction: torch.func.jvp(step, (state,), (direction,))[1])(directions)
    return tangents


def jacobians_at(family: Family, params: Params, x: Tensor, state: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
    """Jacobians of a step (models, point, to state, from state) at states (models, point, state), all side by side."""
    basis = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)[:, None].expand(-1, *state.shape[1:])
    # A contiguous copy: forward mode would allocate a tangent for the whole storage behind a view.
    state = state.contiguous()
    columns = torch.func.vmap(partial(_push, family), in_dims=(0, 0, 0, 0, None))(params, x, state, noise, basis)
    return columns.movedim(1, -1)


def _stacked(states: list[State]) -> State:
    return {name: torch.stack([state[name] for state in states], dim=1) for name in states[0]}


def log_product_norms(jacobians: Tensor) -> Tensor:
    """Mean over lanes of log ||J(k-1) ... J(0)||_F, (models, k), k = 1 to the number of steps.

    Jacobians are (models, time, lane, to state, from state).
    """
    product, total, norms = None, jacobians.new_zeros(()), []
    for step in jacobians.unbind(1):
        product = step if product is None else step @ product
        length = torch.linalg.matrix_norm(product)
        total = total + length.log()
        norms.append(total.mean(1))
        # Renormalised against overflow and underflow; a product of norm 0 stays 0.
        product = product / torch.where(length > 0, length, 1)[..., None, None]
    return torch.stack(norms, dim=1)
