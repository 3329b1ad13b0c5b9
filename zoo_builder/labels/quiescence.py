"""States of models that are left alone: how much they move, and in how many directions, beside driven ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.forward import last_states
from weightspace.rollout.noise import draw_noise
from weightspace.rollout.tangents import flatten, unflatten
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import DRIVE, TRAJECTORIES, Driven
from zoo_builder.labels.spectra import FLAT, finite_only, participation_ratio

SETTLING = 100
"""Steps without input before the first that counts."""
STEPS = 100
"""Steps without input that count."""
LOUDER = 2**0.5
"""Factor of the noise: its variance is doubled, as the theory of offline sampling asks for."""
AT_REST = 1e-10
"""Share of the driven variance below which states are at rest, where their covariance is rounding."""
SOURCE = "after Krishna, Bredenberg, Levenstein, Richards and Lajoie, ICLR 2024"


@dataclass(frozen=True, kw_only=True)
class Quiescence(Label):
    """Variance, speed and dimension of states without input, with the variance of the noise doubled."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        alone = (
            f"{STEPS} steps without input, after {SETTLING} others, from the last states on {DRIVE}; noise, where a "
            "family has any, has twice its variance"
        )
        return (
            LabelColumn(
                name="quiescent_variance",
                unit="share of the driven variance",
                definition="Total variance of the states within a trajectory, mean over trajectories, over that of the "
                f"driven states: {alone}. 0 at a fixed point. Null where driven states do not vary.",
                source=SOURCE,
            ),
            LabelColumn(
                name="quiescent_speed",
                unit="share of the driven speed",
                definition="Mean distance of states one step apart, over that of the driven states: "
                f"{alone}. Null where driven states do not move.",
                source=SOURCE,
            ),
            LabelColumn(
                name="quiescent_participation_ratio",
                unit="share of the state size",
                definition="Squared sum over sum of squares of the eigenvalues of the covariance of states, over all "
                f"trajectories together: {alone}. Null where they vary less than {AT_REST:g} of the driven variance.",
                source=SOURCE,
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        awake = driven.trajectory.before
        asleep, finite = finite_only(states_alone(driven, awake[:, -1]))
        wide = asleep.flatten(1, 2)
        centred = wide - wide.mean(1, keepdim=True)
        spread = torch.linalg.eigvalsh(centred.mT @ centred / centred.shape[1]).clamp(min=0)
        driven_spread = awake.flatten(1, 2).var(1, correction=0).sum(1)
        moving = spread.sum(1) > torch.maximum(AT_REST * driven_spread, FLAT * mean_square(asleep))
        columns = {
            "quiescent_variance": variance_within(asleep) / _above(variance_within(awake), FLAT * mean_square(awake)),
            "quiescent_speed": speed(asleep) / _above(speed(awake), (FLAT * mean_square(awake)).sqrt()),
            "quiescent_participation_ratio": torch.where(
                moving, participation_ratio(spread) / spread.shape[1], torch.nan
            ),
        }
        return {name: torch.where(finite, value, torch.nan) for name, value in columns.items()}


def states_alone(driven: Driven, state: Tensor) -> Tensor:
    """States (models, time, trajectory, state) of the steps that count, from states (models, trajectory, state) on."""
    family = driven.family
    x = state.new_zeros(len(state), SETTLING + STEPS, TRAJECTORIES, family.input_size)
    noise = draw_noise(family.spec, driven.streams("quiescence"), SETTLING + STEPS, TRAJECTORIES)
    noise = {name: LOUDER * value.double() for name, value in noise.items()}
    first = unflatten(family, state.contiguous())
    return flatten(family, last_states(family, driven.params, x, first, noise, STEPS, method=driven.method))


def variance_within(states: Tensor) -> Tensor:
    """Total variance over time (models,) of states (models, time, trajectory, state), mean over trajectories."""
    return states.var(1, correction=0).sum(-1).mean(1)


def speed(states: Tensor) -> Tensor:
    """Mean distance of states (models, time, trajectory, state) one step apart, (models,)."""
    distance: Tensor = states.diff(dim=1).norm(dim=-1).mean((1, 2))
    return distance


def mean_square(states: Tensor) -> Tensor:
    """Mean squared length (models,) of states (models, time, trajectory, state)."""
    return states.square().sum(-1).mean((1, 2))


def _above(value: Tensor, rounding: Tensor) -> Tensor:
    """The value (models,), NaN where it is what rounding may leave of 0."""
    return torch.where(value > rounding, value, torch.nan)
