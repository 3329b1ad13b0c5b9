"""Trajectories measured natively against the same measurements of rollouts and Jacobians by torch."""

import math

import pytest
import torch

from tests.members import ONE_OF_EACH_FAST
from tests.weightspace.test_native import far, sized, stack
from tests.zoo_builder.linear_family import Linear
from weightspace.families.gru import GRU
from weightspace.families.lstm import LSTM
from weightspace.rollout import generator
from weightspace.rollout.native.drive import LANES, Steps, native_drive
from weightspace.rollout.tangents import flatten, jacobians, log_product_norms, tangent_rollout, unflatten

STEPS = Steps(warm_up=3, aligning=2, window=6, jacobians=5)


def drawn(example, hidden_size, steps=STEPS):
    family = sized(example, hidden_size)
    draw = generator(0, "m", "drive")
    x = torch.randn(2, steps.total, LANES, family.input_size, dtype=torch.float64, generator=draw)
    sizes = {name: family.spec.axes[axis].size for name, axis in family.spec.noise.items()}
    noise = {k: torch.randn(2, steps.total, LANES, s, dtype=torch.float64, generator=draw) for k, s in sizes.items()}
    direction = torch.randn(2, LANES, family.spec.state_size, dtype=torch.float64, generator=draw)
    tangent = unflatten(family, direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True))
    return family, stack(family, 2, scale=0.5), x, x.new_zeros(2, LANES, 0), noise, tangent


def expected(family, params, x, start, noise, tangent, steps=STEPS):
    """Growth, visited states, covariance, mean Jacobian and norms, by torch and one step after another."""
    state = torch.func.vmap(family.initial_state)(params, start)
    first = steps.warm_up + steps.aligning
    visited, growth = [], []
    for t in range(steps.total):
        visited.append(flatten(family, state))
        if t == first:
            at_first = state
        seed = tangent if t >= steps.warm_up else {name: torch.zeros_like(value) for name, value in tangent.items()}
        now = {name: value[:, t : t + 1] for name, value in noise.items()}
        states, moved = tangent_rollout(family, params, x[:, t : t + 1], state, seed, now)
        state = {name: value[:, 0] for name, value in states.items()}
        if t >= steps.warm_up:
            length = torch.linalg.vector_norm(flatten(family, moved)[:, 0], dim=-1)
            scale = torch.where(length > 0, length, 1)[..., None]
            tangent = {name: value[:, 0] / scale for name, value in moved.items()}
            growth.append(length.log())
    before = torch.stack(visited[first:], dim=1)
    centred = before.flatten(1, 2) - before.flatten(1, 2).mean(1, keepdim=True)
    part = slice(first, first + steps.jacobians)
    steps_of = jacobians(family, params, x[:, part], at_first, {k: v[:, part] for k, v in noise.items()})
    return {
        "growth": torch.stack(growth[steps.aligning :], dim=1),
        "visited": before,
        "covariance": centred.transpose(1, 2) @ centred / centred.shape[1],
        "mean_jacobian": steps_of.mean((1, 2)),
        "log_norms": log_product_norms(steps_of),
    }


@pytest.mark.parametrize("example", ONE_OF_EACH_FAST, ids=str)
def test_what_is_measured_natively_is_what_torch_measures(example):
    for hidden_size in (1, 5, 18):
        own = drawn(example, hidden_size)
        found = native_drive(*own, STEPS, want_states=True)
        for name, value in expected(*own).items():
            # What vanishes is minus infinity in both.
            own_value = getattr(found, name)
            assert torch.equal(own_value.isinf(), value.isinf()), (name, hidden_size)
            assert far(own_value.nan_to_num(neginf=-9), value.nan_to_num(neginf=-9)) < 1e-9, (name, hidden_size)


def test_float32_is_float64_rounded():
    family, *given = drawn(LSTM(input_size=2, hidden_size=9, output_size=1, num_layers=2), 9)
    narrow = [{k: v.float() for k, v in one.items()} if isinstance(one, dict) else one.float() for one in given]
    found = native_drive(family, *narrow, STEPS)
    assert found.growth.dtype == torch.float32
    assert found.visited is None
    for name, value in expected(family, *given).items():
        if name != "visited":
            assert far(getattr(found, name).double(), value) < 2e-5, name


def test_steps_without_jacobians_are_the_same_steps():
    own = drawn(GRU(input_size=2, hidden_size=7, output_size=1), 7)
    with_them = native_drive(*own, STEPS, want_states=True)
    without = native_drive(*own, Steps(3, 2, 6, 0), want_states=True)
    for name in ("growth", "visited", "covariance"):
        assert torch.equal(getattr(with_them, name), getattr(without, name))
    assert without.log_norms.shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 0.5, 1e15, 1e30])
def test_growth_and_products_are_followed_whatever_their_scale(scale, dtype):
    # Without input the state stays at its start, so that only tangents and Jacobians are of that scale.
    family = Linear(input_size=1, hidden_size=3, output_size=2)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator(0, "m", "turn"), dtype=torch.float64)).Q
    params = {name: torch.zeros(1, *family.spec.shape(name), dtype=dtype) for name in family.spec.tensors}
    params["a"] = (scale * turn)[None].to(dtype)
    x = torch.zeros(1, STEPS.total, LANES, 1, dtype=dtype)
    tangent = {"h": torch.eye(3, dtype=dtype)[:1].expand(1, LANES, 3).contiguous()}
    found = native_drive(family, params, x, x.new_zeros(1, LANES, 0), {}, tangent, STEPS)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    growth = torch.full_like(found.growth, math.log(scale))
    torch.testing.assert_close(found.growth, growth, rtol=tolerance, atol=tolerance)
    lags = torch.arange(1, STEPS.jacobians + 1, dtype=torch.float64)
    # A rotation of three dimensions has the norm sqrt(3).
    norms = lags * math.log(scale) + math.log(3) / 2
    torch.testing.assert_close(found.log_norms[0], norms, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.covariance, torch.zeros_like(found.covariance))


def test_what_vanishes_is_minus_infinity_and_what_overflows_is_not_a_number_and_both_spare_the_others():
    family = Linear(input_size=1, hidden_size=3, output_size=2)
    params = {name: value.float() for name, value in stack(family, 4, scale=0.5).items()}
    _, _, x, start, _, tangent = drawn(family, 3)
    x, start = x.float().repeat(2, 1, 1, 1), start.float().repeat(2, 1, 1)
    tangent = {name: value.float().repeat(2, 1, 1) for name, value in tangent.items()}
    healthy = native_drive(family, params, x, start, {}, tangent, STEPS)
    params["a"][1] = torch.diag(torch.ones(2), -1)
    params["a"][2] = 1e30 * torch.eye(3)
    found = native_drive(family, params, x, start, {}, tangent, STEPS)
    assert bool((found.growth[1, -1] == -torch.inf).all())
    assert found.log_norms[1].isinf().tolist() == [False, False, True, True, True]
    assert bool(found.covariance[2].isnan().any())
    for name in ("growth", "covariance", "mean_jacobian", "log_norms"):
        assert torch.equal(getattr(found, name)[[0, 3]], getattr(healthy, name)[[0, 3]]), name


def test_covariances_of_minute_and_huge_states_keep_their_shape():
    family = Linear(input_size=2, hidden_size=3, output_size=2)
    params = {name: value.float() for name, value in stack(family, 1, scale=0.5).items()}
    _, _, x, start, _, tangent = drawn(family, 3)
    x, start, tangent = x[:1].float(), start[:1].float(), {k: v[:1].float() for k, v in tangent.items()}
    ordinary = native_drive(family, params, x, start, {}, tangent, STEPS).covariance
    for scale in (1e-25, 1e25):
        found = native_drive(family, params, x * scale, start, {}, tangent, STEPS).covariance
        assert far(found / found.abs().max(), ordinary / ordinary.abs().max()) < 1e-5


def test_a_drive_depends_neither_on_neighbours_nor_on_threads():
    family, params, x, start, noise, tangent = drawn(GRU(input_size=2, hidden_size=6, output_size=1), 6)
    together = native_drive(family, params, x, start, noise, tangent, STEPS, want_states=True)
    own = [{k: v[1:] for k, v in one.items()} for one in (params, noise, tangent)]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            alone = native_drive(family, own[0], x[1:], start[1:], own[1], own[2], STEPS, want_states=True)
            again = native_drive(family, params, x, start, noise, tangent, STEPS, want_states=True)
            for name in ("growth", "visited", "covariance", "mean_jacobian", "log_norms"):
                assert torch.equal(getattr(alone, name)[0], getattr(together, name)[1])
                assert torch.equal(getattr(again, name), getattr(together, name))
    finally:
        torch.set_num_threads(threads)


def test_inputs_of_another_length_or_width_are_refused():
    family, params, x, start, noise, tangent = drawn(GRU(input_size=2, hidden_size=6, output_size=1), 6)
    with pytest.raises(ValueError, match="steps of 32 lanes"):
        native_drive(family, params, x[:, 1:], start, noise, tangent, STEPS)
