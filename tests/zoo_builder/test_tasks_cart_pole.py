"""The cart-pole against its published equations, gymnasium and scipy, and models that act in it."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from tests.zoo_builder.linear_family import Linear
from weightspace.rollout import Streams, generator
from zoo_builder import labels
from zoo_builder.labels.closed_loop import DISTURBANCES
from zoo_builder.members import Members
from zoo_builder.tasks import cart_pole
from zoo_builder.tasks.base import Disturbance
from zoo_builder.tasks.cart_pole import CartPole
from zoo_builder.tasks.copy import Copy


def streams(ids=("a", "b")):
    return Streams(0, list(ids), "t")


def plain_step(state, force):
    """One Euler step of 0.02 s in plain numbers: Barto, Sutton and Anderson (1983) without friction."""
    x, v, a, w = state
    mass, ml = 1.1, 0.05
    numerator = 9.8 * math.sin(a) + math.cos(a) * (-force - ml * w * w * math.sin(a)) / mass
    turning = numerator / (0.5 * (4 / 3 - 0.1 * math.cos(a) ** 2 / mass))
    acceleration = (force + ml * (w * w * math.sin(a) - turning * math.cos(a))) / mass
    return [x + 0.02 * v, v + 0.02 * acceleration, a + 0.02 * w, w + 0.02 * turning]


def random_states_and_forces(count):
    source = generator(0, "m", "states")
    state = torch.randn(count, 4, dtype=torch.float64, generator=source)
    return state, 10 * (2.0 * torch.randint(2, (count,), generator=source).double() - 1)


def test_dynamics_are_the_published_equations():
    state, force = random_states_and_forces(50)
    found = cart_pole.moved(state, force).tolist()
    for one, push, after in zip(state.tolist(), force.tolist(), found, strict=True):
        assert after == pytest.approx(plain_step(one, push), rel=1e-12, abs=1e-12)


def test_dynamics_are_those_of_gymnasium():
    world = CartPoleEnv()
    state, force = random_states_and_forces(50)
    found = cart_pole.moved(state, force).numpy()
    for one, push, after in zip(state.numpy(), force.tolist(), found, strict=True):
        world.state, world.steps_beyond_terminated = one, None
        _, _, ended, _, _ = world.step(int(push > 0))
        np.testing.assert_allclose(after, world.state, rtol=0, atol=1e-9)
        assert ended != bool(cart_pole.upright(torch.from_numpy(after)))


def test_the_expert_is_the_regulator_of_the_linearised_dynamics():
    h = 1e-6
    a = np.stack([(np.array(plain_step(h * row, 0)) - plain_step(-h * row, 0)) / (2 * h) for row in np.eye(4)], 1)
    b = ((np.array(plain_step([0.0] * 4, h)) - plain_step([0.0] * 4, -h)) / (2 * h))[:, None]
    cost = scipy.linalg.solve_discrete_are(a, b, np.diag(cart_pole.STATE_COST), np.array([[cart_pole.FORCE_COST]]))
    expected = np.linalg.solve(cart_pole.FORCE_COST + b.T @ cost @ b, b.T @ cost @ a)[0]
    np.testing.assert_allclose(cart_pole.gains().numpy(), expected, rtol=1e-6)


def test_sequences_show_the_experts_own_trajectories():
    task = CartPole(num_steps=15, shake=0.0)
    batch = task.sample({}, streams(), 6, "train")
    first = cart_pole.first_states(streams(), 6)
    gains = cart_pole.gains().tolist()
    for m in range(2):
        for b in range(6):
            state = first[m, b].tolist()
            for t in range(15):
                force = max(-10.0, min(10.0, -sum(k * s for k, s in zip(gains, state, strict=True))))
                assert batch.x[m, t, b].tolist() == pytest.approx([state[0], 5 * state[2]], abs=1e-6)
                assert batch.target[m, t, b, 0].item() == pytest.approx(force / 10, abs=1e-6)
                state = plain_step(state, force)


@pytest.mark.parametrize("shake", [0.0, 3.0])
def test_the_expert_never_falls(shake):
    state = cart_pole.first_states(streams(["a"]), 500)
    noise = streams(["a"]).normal(200, 500, dtype=torch.float64)
    for t in range(200):
        state = cart_pole.moved(state, cart_pole.expert(state) + shake * noise[:, t])
        assert cart_pole.upright(state).all()


def test_survival_is_that_of_a_loop_over_episodes():
    task, gains = CartPole(horizon=60), (0.0, 0.25)
    survival = task.closed_loop(lambda x: (x * torch.tensor(gains)).sum(-1, keepdim=True), streams(), 8, Disturbance())
    for m, found in enumerate(survival.tolist()):
        total = 0
        for state in cart_pole.first_states(streams(), 8)[m].tolist():
            for _ in range(60):
                force = 10 * max(-1.0, min(1.0, gains[0] * state[0] + gains[1] * 5 * state[2]))
                state = plain_step(state, force)
                if abs(state[0]) > 2.4 or abs(state[2]) > math.radians(12):
                    break
                total += 1
        assert 0 < total < 480
        assert found == pytest.approx(total / 480)


def test_noise_and_pushes_shorten_the_life_of_one_who_copes_without():
    class Observer:
        """The expert, with the velocities it can work out from what it saw and did."""

        def __init__(self):
            self.state = None

        def __call__(self, x):
            position, angle = x[..., 0], x[..., 1] / cart_pole.ANGLE_UNIT
            before = self.state if self.state is not None else torch.stack([position, position, angle, angle], -1)
            speeds = torch.stack([position - before[..., 0], angle - before[..., 2]], -1) / cart_pole.SECONDS
            self.state = torch.stack([position, speeds[..., 0], angle, speeds[..., 1]], -1)
            return cart_pole.expert(self.state)[..., None] / cart_pole.FORCE

    task, lives = CartPole(), {}
    for name, disturbance in DISTURBANCES.items():
        lives[name] = task.closed_loop(Observer(), streams(), 50, disturbance).mean().item()
    assert lives["survival"] == 1
    assert lives["survival_noisy"] < 0.9
    assert task.closed_loop(Observer(), streams(), 50, Disturbance(push=2.0)).mean() < 0.5


def test_the_label_lets_each_model_act_and_is_null_where_nobody_can():
    family = Linear(input_size=2, hidden_size=2, output_size=1)
    params = {name: torch.zeros(2, *family.spec.shape(name)) for name in family.spec.tensors}
    task = CartPole(horizon=30)
    measured = labels.measure(["ClosedLoop"], family, params, task, Members(0, ["a", "b"]))
    driven = labels.Driven(family, params, task, Members(0, ["a", "b"]))
    still = task.closed_loop(lambda x: torch.zeros(2, 32, 1), driven.streams("closed_loop"), 32, Disturbance())
    assert measured["survival"].tolist() == still.tolist()
    assert measured["survival_pushed"].lt(1).all()
    other, copying = Copy(), Linear(input_size=10, hidden_size=2, output_size=8)
    params = {name: torch.zeros(2, *copying.spec.shape(name)) for name in copying.spec.tensors}
    none = labels.measure(["ClosedLoop"], copying, params, other, Members(0, ["a", "b"]))
    assert all(column.isnan().all() for column in none.values())


@pytest.mark.parametrize("fields", [{"num_steps": 0}, {"horizon": 0}, {"shake": 4.0}])
def test_what_the_expert_cannot_do_is_refused(fields):
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}`"):
        CartPole(**fields)
