"""Tangents and Jacobians along native rollouts against torch's forward mode, and every map's share against autograd."""

import dataclasses

import pytest
import torch

from tests.members import EXAMPLES, ONE_OF_EACH_FAST
from tests.weightspace.test_native import far, sized, stack
from weightspace.families.gru import GRU
from weightspace.families.lstm import LSTM
from weightspace.rollout import generator, rollout
from weightspace.rollout.native.derive.derivatives import PARTIALS
from weightspace.rollout.native.engine.records import OPCODES
from weightspace.rollout.native.forward import native_outputs
from weightspace.rollout.tangents import flatten, jacobians, push, tangent_rollout, unflatten

SIZES = ((1, 3, 2), (5, 1, 1), (17, 4, 37))


def drawn(example, hidden_size, time, batch):
    """A family of this size with params, inputs, noise, states and tangents, float64."""
    family = sized(example, hidden_size)
    draw = generator(0, "m", "x")

    def normal(*shape):
        return torch.randn(2, *shape, dtype=torch.float64, generator=draw)

    sizes = {name: family.spec.size_of_state(name) for name in family.spec.states}
    noise = {name: normal(time, batch, family.spec.axes[axis].size) for name, axis in family.spec.noise.items()}
    state, moved = ({name: normal(batch, size) for name, size in sizes.items()} for _ in range(2))
    return family, stack(family, 2, scale=0.5), normal(time, batch, family.input_size), noise, state, moved


@pytest.mark.parametrize("example", ONE_OF_EACH_FAST, ids=str)
def test_native_tangents_and_jacobians_equal_forward_mode(example):
    for sizes in SIZES:
        family, params, x, noise, state, moved = drawn(example, *sizes)
        found, expected = (
            tangent_rollout(family, params, x, state, moved, noise, method=method) for method in ("native", "stacked")
        )
        for one, other in zip(found, expected, strict=True):
            assert all(far(one[name], other[name]) < 1e-10 for name in family.spec.states), sizes
        of_steps, expected = (
            jacobians(family, params, x, state, noise, method=method) for method in ("native", "stacked")
        )
        assert of_steps.shape == (2, *x.shape[1:3], *[family.spec.state_size] * 2)
        assert far(of_steps, expected) < 1e-10, sizes


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_pushed_directions_are_jacobians_times_directions(example):
    family, params, x, noise, state, _ = drawn(example, 5, 1, 19)
    size = family.spec.state_size
    draw = generator(0, "m", "directions")
    directions = torch.randn(2, 3, 19, size, dtype=torch.float64, generator=draw)
    first = {name: value[:, 0] for name, value in noise.items()}
    expected = torch.einsum("mpij,mdpj->mdpi", jacobians(family, params, x, state, noise)[:, 0], directions)
    for method in ("native", "stacked"):
        assert far(push(family, params, x[:, 0], state, directions, first, method=method), expected) < 1e-10


def test_tangents_and_jacobians_in_float32_are_those_of_float64():
    family, params, x, noise, state, _ = drawn(GRU(input_size=2, hidden_size=5, output_size=1, num_layers=2), 9, 3, 5)
    narrow = [{k: v.float() for k, v in part.items()} for part in (params, state, noise)]
    found = jacobians(family, narrow[0], x.float(), narrow[1], narrow[2], method="native")
    assert found.dtype == torch.float32
    assert far(found.double(), jacobians(family, params, x, state, noise)) < 2e-5


def test_every_map_of_the_engine_that_a_step_can_use_has_a_derivative():
    not_steps = {"product", "zero", "sum_into", "sum_product_into", "sum_crossed_into", "gather", "scatter", "load"}
    not_steps |= {name for name in OPCODES if "_grad" in name}
    assert set(OPCODES) - not_steps == PARTIALS.keys()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everything(GRU):
    """A step that uses every map: what no family needs today is tested all the same."""

    def step(self, params, state, x, noise):
        h = state["h.0"]
        w = params["weight_hh.0"][0].T
        p = params["bias.0"][0]
        a, b = h @ w, torch.tanh(h) * 2 + 0.1
        c = torch.sin(a) * torch.cos(h) + torch.maximum(a, b) - torch.minimum(h, a * b)
        c = c + torch.exp(-torch.abs(a)) + torch.log(h * h + 1) + torch.sqrt(a * a + 0.5) - (1 - h) / (b * b + 1)
        c = c * p + torch.nn.functional.softplus(h * p + a) + torch.relu(a) + torch.nn.functional.leaky_relu(c, 0.2)
        d = torch.cat([c[:, :2], h[:, 2:]], dim=1) + torch.sigmoid(x @ params["weight_ih.0"][0].T) + p
        return {"h.0": torch.tanh(d @ w + h @ w) * (a - 1) / (2 + torch.sigmoid(h))}


def test_a_step_that_uses_every_map_has_the_tangents_of_forward_mode():
    example = Everything(input_size=2, hidden_size=5, output_size=1)
    family, params, x, noise, state, moved = drawn(example, 5, 3, 4)
    found, expected = (
        tangent_rollout(family, params, x, state, moved, noise, method=method)[1]["h.0"]
        for method in ("native", "stacked")
    )
    assert far(found, expected) < 1e-10
    of_steps, expected = (jacobians(family, params, x, state, noise, method=m) for m in ("native", "stacked"))
    assert far(of_steps, expected) < 1e-10


def test_outputs_of_the_last_steps_are_those_of_the_rollout():
    family, params, x, noise, _, _ = drawn(LSTM(input_size=3, hidden_size=9, output_size=4), 9, 5, 37)
    start = x.new_zeros(2, 37, 0)
    whole = rollout(family, params, x, start, noise=noise).outputs
    for num_steps in (1, 5):
        assert far(native_outputs(family, params, x, start, noise, num_steps), whole[:, -num_steps:]) < 1e-12


def test_states_side_by_side_come_apart_again():
    family, _, _, _, state, _ = drawn(LSTM(input_size=1, hidden_size=3, output_size=1), 3, 1, 2)
    again = unflatten(family, flatten(family, state))
    assert all(torch.equal(again[name], value) for name, value in state.items())
