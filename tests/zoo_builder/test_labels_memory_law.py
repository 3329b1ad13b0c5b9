"""Slowest rates, memory laws and stability radii of networks whose answers are known."""

import math

import numpy as np
import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.elman import Elman
from weightspace.families.stable_reparam import StableReparam
from weightspace.rollout import Streams, rollout
from zoo_builder import labels
from zoo_builder.labels import Driven, stability_radius
from zoo_builder.labels.memory_law import NUM_STEPS
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.memory_functional import MemoryFunctional

IDS = ["a", "b", "c"]
MEMBERS = Members(0, IDS)
FAMILY = StableReparam(input_size=1, hidden_size=6, output_size=1, parameterisation="direct", nonlinearity="identity")


def measured(label, family, params, task=None):
    return labels.measure([label], family, params, task, MEMBERS)


def with_memory(rates, weights):
    """Three linear networks whose memory function is |sum_i weights_i exp(-rates_i t)|."""
    params = {name: torch.zeros(3, *FAMILY.spec.shape(name), dtype=torch.float64) for name in FAMILY.spec.tensors}
    params["w"][:, : len(rates)] = torch.tensor((1 - np.exp(-np.array(rates))) / FAMILY.time_step)
    params["w"][:, len(rates) :] = 1.0
    params["weight_ih"][:] = 1 / FAMILY.time_step
    params["weight_ho"][:, 0, : len(rates)] = torch.tensor(weights, dtype=torch.float64)
    return params


def test_the_slowest_rate_of_a_linear_network_is_that_of_its_slowest_unit_or_mode():
    for mixed in (False, True):
        family = StableReparam(input_size=1, hidden_size=6, output_size=1, nonlinearity="identity", mixed=mixed)
        params = fresh_params(family, 0, IDS)
        rate = torch.nn.functional.softplus(params["w"].double()).amin(1)
        expected = -torch.log(1 - family.time_step * rate)
        torch.testing.assert_close(measured("SlowestRate", family, params)["slowest_rate"], expected, rtol=1e-5, atol=0)


def test_the_slowest_rate_is_below_0_where_deviations_grow():
    family = Linear(input_size=1, hidden_size=2, output_size=1)
    params = fresh_params(family, 0, IDS)
    params["a"] = torch.diag(torch.tensor([1.25, 0.5])).expand(3, 2, 2)
    assert measured("SlowestRate", family, params)["slowest_rate"].tolist() == pytest.approx([-math.log(1.25)] * 3)


def test_the_slowest_rate_of_tanh_units_is_that_of_the_state_at_rest():
    family = Elman(input_size=2, hidden_size=4, output_size=1)
    params = fresh_params(family, 0, IDS)
    found = measured("SlowestRate", family, params)["slowest_rate"]
    for model in range(3):
        weight, bias = (params[name][model].double() for name in ("weight_hh.0", "bias.0"))
        h = torch.zeros(4, dtype=torch.float64)
        for _ in range(48):
            h = torch.tanh(weight @ h + bias)
        jacobian = (1 - torch.tanh(weight @ h + bias) ** 2)[:, None] * weight
        assert found[model].item() == pytest.approx(-math.log(torch.linalg.eigvals(jacobian).abs().max()), rel=1e-6)


def test_a_single_exponential_has_its_rate_and_is_called_exponential():
    found = measured("MemoryLaw", FAMILY, with_memory([0.17], [0.8]))
    assert found["memory_function_rate"].tolist() == pytest.approx([0.17] * 3, rel=1e-9)
    assert (found["memory_law_aic"] > 100).all()


def test_a_power_law_made_of_exponentials_has_its_exponent_and_is_called_a_power():
    rates, lags = np.geomspace(5e-3, 3, 6), np.arange(NUM_STEPS)
    target = (1.0 + lags) ** -1.1
    exponentials = np.exp(-np.outer(lags, rates)) / target[:, None]
    weights, *_ = np.linalg.lstsq(exponentials, np.ones(NUM_STEPS), rcond=None)
    found = measured("MemoryLaw", FAMILY, with_memory(rates, weights))
    assert found["memory_function_exponent"].tolist() == pytest.approx([1.1] * 3, rel=0.02)
    assert (found["memory_law_aic"] < -100).all()


def test_aic_equals_the_textbook_formula_on_lines_fitted_by_numpy():
    rates, weights = [0.05, 0.6], [0.3, 1.0]
    found = measured("MemoryLaw", FAMILY, with_memory(rates, weights))
    time = np.arange(NUM_STEPS)
    log = np.log(np.exp(-np.outer(time, rates)) @ weights)
    criteria = {}
    for name, axis in (("rate", time), ("exponent", np.log1p(time))):
        slope, offset = np.polyfit(axis, log, 1)
        residual = np.sum((log - slope * axis - offset) ** 2)
        criteria[name] = 2 * 2 + NUM_STEPS * math.log(residual / NUM_STEPS)
        assert found[f"memory_function_{name}"].tolist() == pytest.approx([-slope] * 3, rel=1e-8)
    assert found["memory_law_aic"].tolist() == pytest.approx([criteria["exponent"] - criteria["rate"]] * 3, rel=1e-8)


def test_memories_that_end_at_once_or_never_decay_have_no_verdict():
    never = measured("MemoryLaw", FAMILY, with_memory([-0.01], [1.0]))
    assert never["memory_law_aic"].isnan().all()
    assert never["memory_function_rate"].tolist() == pytest.approx([-0.01] * 3)
    at_once = measured("MemoryLaw", FAMILY, with_memory([9.0], [1.0]))
    assert all(column.isnan().all() for column in at_once.values())


def test_the_stability_radius_is_where_the_worst_loss_leaves_ten_times_its_own():
    family, task = Elman(input_size=1, hidden_size=4, output_size=1), MemoryFunctional(num_steps=6)
    params = fresh_params(family, 0, IDS)
    params["weight_ho"][1] = 1e-4
    found = measured("StabilityRadius", family, params, task)["stability_radius"]
    batch = task.sample({}, Streams(0, IDS, "labels/answers/test"), 256, "test").narrow(0, 32)
    driven = Driven(family, params, task, MEMBERS)
    moves = [stability_radius._directions(driven, number) for number in range(3)]
    for move in moves:
        for value in move.values():
            assert value.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 3)

    def losses(size):
        worst = []
        for move in moves:
            moved = {name: value.double() + size * move[name] for name, value in params.items()}
            outputs = rollout(family, moved, batch.x.double()).outputs
            worst.append((outputs - batch.target).square().mean((1, 2, 3)))
        return torch.stack(worst).amax(0)

    for model in range(3):
        expected = 0.0
        for size in (1e-3 * 2**k for k in range(10)):
            if losses(size)[model] > 10 * losses(0.0)[model]:
                break
            expected = size
        assert found[model].item() == pytest.approx(expected)


def test_a_nearly_perfect_model_has_a_smaller_radius_and_one_that_diverges_none():
    task = MemoryFunctional(num_steps=12, decay=0.3)
    family = FAMILY
    params = with_memory([0.3], [1.0])
    params["weight_ih"][1] *= 1.01
    params["weight_ho"][2] = math.inf
    found = measured("StabilityRadius", family, params, task)["stability_radius"]
    assert found[0] == 0
    assert found[1] >= 1e-3
    assert found[2].isnan()
    assert measured("StabilityRadius", family, params)["stability_radius"].isnan().all()
