"""Memory capacity of networks whose memory is known."""

import numpy as np
import pytest
import torch

from tests.zoo_builder.linear_family import Linear, shift_register
from zoo_builder import labels
from zoo_builder.labels.memory_capacity import RIDGE, capacities
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members


def test_a_shift_register_remembers_its_length_less_the_present():
    family, params = shift_register(6, 1.0)
    forgetful = {**params, "a": torch.zeros(6, 6)}
    stacked = {name: torch.stack([params[name], forgetful[name]]) for name in params}
    found = labels.measure(["MemoryCapacity"], family, stacked, None, Members(0, ["a", "b"]))["memory_capacity"]
    assert found.tolist() == pytest.approx([5, 0], abs=0.1)


def test_each_lag_of_a_shift_register_counts_once_and_chance_counts_nothing():
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(200, 90, 16, generator=generator, dtype=torch.float64)
    states = torch.stack([u[:, 10:], u[:, 9:-1], u[:, 8:-2]], dim=-1)
    found = capacities([states], u, 6, 80)
    assert found[:, :2].mean(0).tolist() == pytest.approx([1, 1], abs=0.01)
    # Without the correction the mean would be 1 / 639, nine standard errors off.
    assert found[:, 2:].mean().item() == pytest.approx(0, abs=3e-4)


def test_read_outs_agree_with_numpy_one_lag_at_a_time():
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(2, 40, 4, generator=generator, dtype=torch.float64)
    states = torch.randn(2, 36, 4, 3, generator=generator, dtype=torch.float64) * 0.2
    states[..., 0] += u[:, 2:-2]
    found = capacities([states], u, 3, 36)
    torch.testing.assert_close(capacities(states.split([5, 20, 11], 1), u, 3, 36), found, rtol=1e-9, atol=1e-12)
    for m in range(2):
        h, h_new = (states[m, :, half].reshape(-1, 3).numpy() for half in (slice(0, 2), slice(2, 4)))
        for lag in (1, 2, 3):
            y, y_new = (u[m, 4 - lag : 40 - lag, half].reshape(-1).numpy() for half in (slice(0, 2), slice(2, 4)))
            centred = h - h.mean(0)
            gram = centred.T @ centred
            weights = np.linalg.solve(gram + RIDGE * np.trace(gram) / 3 * np.eye(3), centred.T @ (y - y.mean()))
            expected = np.corrcoef(h_new @ weights, y_new)[0, 1] ** 2 - 1 / (len(y_new) - 1)
            assert found[m, lag - 1].item() == pytest.approx(expected, abs=1e-8)


def test_inputs_come_in_along_one_random_direction():
    family, ids = Linear(input_size=2, hidden_size=2, output_size=1), ["a", "b"]
    params = fresh_params(family, 0, ids)
    # Its two units remember the two inputs of one step each, which are the same signal: one lag, not two.
    params["a"], params["b"] = torch.zeros(2, 2, 2), torch.eye(2).expand(2, 2, 2)
    found = labels.measure(["MemoryCapacity"], family, params, None, Members(0, ids))["memory_capacity"]
    assert found.tolist() == pytest.approx([0, 0], abs=0.1)
    params["a"][0] = torch.tensor([[0.5, 0.0], [1.0, 0.0]])
    found = labels.measure(["MemoryCapacity"], family, params, None, Members(0, ids))["memory_capacity"]
    assert found[0].item() > 0.5
    assert found.max().item() <= 2.1
