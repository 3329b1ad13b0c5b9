"""How much of a random input's past can be read linearly from the state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.forward import last_states
from weightspace.rollout.noise import draw_noise
from weightspace.rollout.tangents import flatten, unflatten
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import TRAJECTORIES, WARM_UP, Driven
from zoo_builder.labels.spectra import finite_only

AMPLITUDE = 0.1
"""Bound of the random input; larger inputs meet more of a model's nonlinearity."""
LAGS_PER_UNIT = 2
SAMPLES_PER_UNIT = 50
"""Samples for each state unit, half the trajectories each, to fit the read-outs and again to judge them."""
RIDGE = 1e-8
"""Penalty of the read-outs, as a share of the mean variance of the states."""


@dataclass(frozen=True, kw_only=True)
class MemoryCapacity(Label):
    """Linear short-term memory capacity, corrected for chance."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return (
            LabelColumn(
                name="memory_capacity",
                unit="steps",
                definition="Sum over lags k = 1 to 2 * state size of r(k)^2 - 1/(samples - 1), r(k) the correlation of "
                "u(t - k) with its best linear read-out of the state h(t), on trajectories other than those the "
                f"read-out is fitted on by ridge regression ({RIDGE:g} of the mean variance of the states); "
                f"{SAMPLES_PER_UNIT} samples per state unit in each half. The input is u(t) times a random unit "
                f"direction, u uniform in -{AMPLITUDE:g} to {AMPLITUDE:g}; {TRAJECTORIES} trajectories go on from "
                f"driven states, with {WARM_UP} steps and the longest lag to forget them. At most the state size.",
                source="Jaeger, Short term memory in echo state networks, GMD report 152, 2001",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        states, u = _driven_by_noise(driven)
        num_lags = LAGS_PER_UNIT * states.shape[-1]
        # One model at a time: all lags of all models of large states together would take gigabytes.
        pairs = zip(states.split(1), u.split(1), strict=True)
        return {"memory_capacity": torch.cat([capacities(*pair, num_lags).sum(1) for pair in pairs])}


def _driven_by_noise(driven: Driven) -> tuple[Tensor, Tensor]:
    """States (models, time, trajectory, state) and the scalars (models, earlier + time, trajectory) that drove them."""
    family = driven.family
    size = family.spec.state_size
    num_lags = LAGS_PER_UNIT * size
    num_steps = -(-SAMPLES_PER_UNIT * size // (TRAJECTORIES // 2))
    streams = driven.streams("memory_capacity")
    direction = streams.normal(family.input_size, dtype=torch.float64)
    direction = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    early = WARM_UP + num_lags
    u = AMPLITUDE * (2 * streams.uniform(early + num_steps, TRAJECTORIES, dtype=torch.float64) - 1)
    noise = {k: v.double() for k, v in draw_noise(family.spec, streams, early + num_steps, TRAJECTORIES).items()}
    state = unflatten(family, driven.trajectory.before[:, 0])
    x = u[..., None] * direction[:, None, None]
    states = last_states(family, driven.params, x, state, noise, num_steps, method=driven.method)
    return flatten(family, states), u


def capacities(states: Tensor, u: Tensor, num_lags: int) -> Tensor:
    """r(k)^2 less its chance level, (models, lag), lags 1 to num_lags; NaN where states are not finite.

    `states` (models, time, trajectory, state) are those of the last steps of `u` (models, earlier + time, trajectory),
    of which at least num_lags are earlier. The first half of the trajectories fits, the second half judges.
    """
    usable, finite = finite_only(states)
    num_steps, num_trajectories = usable.shape[1:3]
    early = u.shape[1] - num_steps
    usable = usable / usable.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(usable.dtype).tiny)
    past = torch.stack([u[:, early - k : u.shape[1] - k] for k in range(1, num_lags + 1)], dim=-1)
    (h, h_new), (y, y_new) = (
        [half.flatten(1, 2) for half in (value[:, :, : num_trajectories // 2], value[:, :, num_trajectories // 2 :])]
        for value in (usable, past)
    )
    mean_h, mean_y = h.mean(1, keepdim=True), y.mean(1, keepdim=True)
    centred = h - mean_h
    gram = centred.transpose(1, 2) @ centred
    penalty = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(gram.dtype).tiny)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weights, _ = torch.linalg.solve_ex(gram + penalty[:, None, None] * eye, centred.transpose(1, 2) @ (y - mean_y))
    chance = 1 / (y_new.shape[1] - 1)
    squared = _squared_correlation((h_new - mean_h) @ weights, y_new) - chance
    return torch.where(finite[:, None], squared, torch.nan)


def _squared_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Squared correlation (models, lag) over the samples of (models, sample, lag); 0 where one side is constant."""
    first, second = (value - value.mean(1, keepdim=True) for value in (first, second))
    both = first.square().sum(1) * second.square().sum(1)
    return torch.where(both > 0, (first * second).sum(1).square() / torch.where(both > 0, both, 1), 0)
