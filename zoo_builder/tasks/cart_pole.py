"""Imitation of an expert that balances a pole on a cart, and balancing it oneself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Disturbance, Policy, Split
from zoo_builder.tasks.continuous import Continuous

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
"""Of gymnasium's CartPole: m/s^2, kg, kg, m, the largest force in N, and the time step."""
LARGEST_X, LARGEST_ANGLE = 2.4, math.radians(12)
"""Where an episode ends."""
STATE_COST, FORCE_COST = (1.0, 1.0, 10.0, 1.0), 0.1
"""What the expert weighs: squares of position, velocity, angle and angular velocity, and of the force."""
SPREAD = (0.5, 0.5, 0.1, 0.5)
"""States of the first step are uniform up to these, in m, m/s, rad and rad/s."""
ANGLE_UNIT = 5.0


@dataclass(frozen=True, kw_only=True)
class CartPole(Continuous):
    """Which force does the expert use? Behaviour cloning on a cart-pole (Barto, Sutton and Anderson, 1983).

    Inputs are position (m) and 5 * angle (rad) of the pole on the cart, so that velocities must be remembered; the
    answer is the expert's force, as a share of 10 N. The expert is the linear-quadratic regulator of the linearised
    dynamics, with its force cut at 10 N; what is executed is that force with Gaussian noise of `shake` N, so that
    imitators see how to recover (Laskey et al., DART, CoRL 2017). The dynamics are those of gymnasium's CartPole, with
    any force in place of two. The score is that of imitation; `closed_loop` is the share of `horizon` steps for which a
    model that acts itself keeps the pole within 12 degrees and the cart within 2.4 m.
    """

    num_steps: int = 60
    """Steps of a demonstration."""
    shake: float = 2.0
    """Size of the random pushes in demonstrations, as the class says."""
    horizon: int = 200
    """Steps for which a model that acts itself is watched."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-0.85, 0.85)
    splits_differ: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("num_steps", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1.")
        if not 0 <= self.shake <= 3:
            raise ValueError(f"`shake` (={self.shake}) must be from 0 to 3 newtons, with which the expert still copes.")

    @property
    def input_size(self) -> int:
        return 2

    @property
    def output_size(self) -> int:
        return 1

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        state = first_states(streams, batch_size)
        noise = self.shake * streams.normal(self.num_steps, batch_size, dtype=torch.float64)
        observations, forces = [], []
        for t in range(self.num_steps):
            observations.append(observed(state))
            forces.append(expert(state))
            state = moved(state, forces[-1] + noise[:, t])
        x, target = torch.stack(observations, 1).float(), torch.stack(forces, 1)[..., None].float() / FORCE
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=target)

    def closed_loop(self, policy: Policy, streams: Streams, episodes: int, disturbance: Disturbance) -> Tensor:
        state = first_states(streams, episodes)
        noise = disturbance.observation * streams.normal(self.horizon, episodes, 2, dtype=torch.float64)
        pushes = disturbance.push * FORCE * streams.normal(self.horizon, episodes, dtype=torch.float64)
        alive = torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)
        survived = torch.zeros_like(alive, dtype=torch.float64)
        for t in range(self.horizon):
            force = FORCE * policy(observed(state) + noise[:, t])[..., 0].double().clamp(-1, 1)
            # Outputs that are not finite let the pole fall.
            alive = alive & force.isfinite()
            state = torch.where(alive[..., None], moved(state, force + pushes[:, t]), state)
            alive = alive & upright(state)
            survived += alive
        return survived.mean(1) / self.horizon

    @classmethod
    def examples(cls) -> Sequence[CartPole]:
        return [cls(num_steps=30, horizon=20), cls(num_steps=40, shake=3.0, horizon=5)]


def first_states(streams: Streams, count: int) -> Tensor:
    """States (models, count, 4) of first steps: position, velocity, angle, angular velocity; float64."""
    draws = 2 * streams.uniform(count, 4, dtype=torch.float64) - 1
    return draws * torch.tensor(SPREAD, dtype=torch.float64, device=streams.device)


def moved(state: Tensor, force: Tensor) -> Tensor:
    """States (..., 4) one Euler step on under forces (...) in N.

    With m the pole, M the whole mass, l half the pole's length and f = (F + m l w^2 sin a) / M:
    w' = (g sin a - f cos a) / (l (4/3 - m cos^2 a / M)) and v' = f - m l w' cos a / M.
    """
    _, velocity, angle, turn = state.unbind(-1)
    mass, moment = CART + POLE, POLE * HALF_LENGTH
    sine, cosine = angle.sin(), angle.cos()
    pushed = (force + moment * turn.square() * sine) / mass
    turning = (GRAVITY * sine - cosine * pushed) / (HALF_LENGTH * (4 / 3 - POLE * cosine.square() / mass))
    acceleration = pushed - moment * turning * cosine / mass
    change = torch.stack([velocity, acceleration, turn, turning], -1)
    return state + SECONDS * change


def upright(state: Tensor) -> Tensor:
    """Whether states (..., 4) are within bounds."""
    return (state[..., 0].abs() <= LARGEST_X) & (state[..., 2].abs() <= LARGEST_ANGLE)


def observed(state: Tensor) -> Tensor:
    """What a model sees (..., 2) of states (..., 4)."""
    return torch.stack([state[..., 0], ANGLE_UNIT * state[..., 2]], -1)


def expert(state: Tensor) -> Tensor:
    """The expert's forces (...) in N at states (..., 4)."""
    forces: Tensor = -(state * gains().to(state.device)).sum(-1)
    return forces.clamp(-FORCE, FORCE)


@cache
def gains() -> Tensor:
    """Feedback gains (4,) of the linear-quadratic regulator: the fixed point of the discrete Riccati recursion."""
    mass, moment = CART + POLE, POLE * HALF_LENGTH
    arm = HALF_LENGTH * (4 / 3 - POLE / mass)
    # Rows are velocity, acceleration, turn, turning, linear in the state and in the force.
    by_state = [[0, 1, 0, 0], [0, 0, -moment * GRAVITY / (mass * arm), 0], [0, 0, 0, 1], [0, 0, GRAVITY / arm, 0]]
    by_force = [[0], [1 / mass + moment / (mass**2 * arm)], [0], [-1 / (mass * arm)]]
    a = torch.eye(4, dtype=torch.float64) + SECONDS * torch.tensor(by_state, dtype=torch.float64)
    b = SECONDS * torch.tensor(by_force, dtype=torch.float64)
    cost = weight = torch.diag(torch.tensor(STATE_COST, dtype=torch.float64))
    gain = torch.zeros(1, 4, dtype=torch.float64)
    for _ in range(2000):
        gain = (b.T @ cost @ a) / (FORCE_COST + b.T @ cost @ b)
        cost = weight + a.T @ cost @ (a - b @ gain)
    return gain[0]
