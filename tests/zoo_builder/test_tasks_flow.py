"""Chaotic flows against scipy's integrator, their published exponents, and their own statistics."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from weightspace.rollout import Streams, generator
from zoo_builder.tasks.flow import POINTS, integrated, on_attractor, runge_kutta
from zoo_builder.tasks.lorenz import Lorenz
from zoo_builder.tasks.roessler import Roessler

FLOWS = [Lorenz, Roessler]
EXPONENTS = {Lorenz: 0.906, Roessler: 0.0714}
"""Largest Lyapunov exponents as Sprott (Chaos and Time-Series Analysis, 2003) has them."""

STEPS = {Lorenz: 1200, Roessler: 3000}
"""Steps of two replicas."""


def published(flow):
    """The equations in plain numbers."""
    if flow is Lorenz:
        return lambda t, s: [10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]]
    return lambda t, s: [-s[1] - s[2], s[0] + 0.2 * s[1], 0.2 + s[2] * (s[0] - 5.7)]


@pytest.mark.parametrize("flow", FLOWS)
def test_trajectories_are_those_of_scipy(flow):
    begin = on_attractor(flow)[:, 5::4001]
    samples = 20
    found = integrated(flow, begin, samples).numpy()
    times = flow.interval * np.arange(samples + 1)
    for number in range(begin.shape[1]):
        exact = solve_ivp(
            published(flow), (0, times[-1]), begin[:, number].numpy(), t_eval=times, rtol=1e-11, atol=1e-11
        )
        error = np.abs(found[..., number] - exact.y) / np.array(flow.reach)[:, None]
        assert error.max() < 1e-2
        assert error[:, :5].max() < 1e-3


@pytest.mark.parametrize("flow", FLOWS)
def test_the_integrator_is_of_order_four(flow):
    begin = on_attractor(flow)[:, 7::997]
    time = flow.interval / flow.substeps

    def after(parts):
        state = begin
        for _ in range(parts):
            state = runge_kutta(flow, state, time / parts)
        return state

    exact = after(128)
    coarse, fine = ((after(parts) - exact).abs().max() for parts in (8, 16))
    assert 12 < float(coarse / fine) < 20


@pytest.mark.parametrize("flow", FLOWS)
def test_the_largest_lyapunov_exponent_is_the_published_one(flow):
    # Points of all times: trajectories that turn in step would all be apart most at the same time.
    points = on_attractor(flow)
    state, apart = points[:, torch.randperm(points.shape[1], generator=generator(0, "m", "p"))[:512]], 1e-8
    other = state + apart / 3**0.5
    growth, steps, time = [], STEPS[flow], flow.interval / flow.substeps
    for _ in range(steps):
        state, other = runge_kutta(flow, torch.stack([state, other], -1), time).unbind(-1)
        distance = (other - state).norm(dim=0)
        growth.append((distance / apart).log().mean())
        other = state + (other - state) * (apart / distance)
    # The replicas are apart in the fastest direction after a quarter of the time.
    rate = torch.stack(growth)[steps // 4 :].mean() / time
    assert float(rate) == pytest.approx(EXPONENTS[flow], rel=0.03)


@pytest.mark.parametrize("flow", FLOWS)
def test_states_go_from_minus_one_to_one(flow):
    states = integrated(flow, on_attractor(flow)[:, -POINTS:], 300).flatten(1)
    centre, reach = (torch.tensor(column, dtype=torch.float64)[:, None] for column in (flow.centre, flow.reach))
    scaled = (states - centre) / reach
    assert (scaled.amax(1) - 1).abs().max() < 0.05
    assert (scaled.amin(1) + 1).abs().max() < 0.05


@pytest.mark.parametrize("flow", FLOWS)
def test_the_answer_is_the_state_so_many_samples_later_for_each_model(flow):
    task = flow(num_steps=12, max_ahead=5, ahead=2)
    ids = ["a", "b", "c"]
    batch = task.sample({"ahead": torch.tensor([1.0, 2.0, 5.0])}, Streams(0, ids, "t"), 4, "train")
    assert batch.x.shape == batch.target.shape == (3, 12, 4, 3)
    for model, ahead in enumerate((1, 2, 5)):
        assert torch.equal(batch.target[model, : 12 - ahead], batch.x[model, ahead:])
    same = task.sample({}, Streams(0, ids, "t"), 4, "train")
    assert torch.equal(same.x, batch.x)
    seen = flow(num_steps=12, max_ahead=5, ahead=2, observed=1).sample({}, Streams(0, ids, "t"), 4, "train")
    assert torch.equal(seen.x, batch.x[..., :1])
    assert torch.equal(seen.target, same.target)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"ahead": 11}, "`ahead`"), ({"observed": 4}, "`observed`"), ({"num_steps": 1}, "`num_steps`")],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Lorenz(**fields)
