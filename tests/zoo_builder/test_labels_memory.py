"""Decay of memory against closed forms and a plain loop."""

import math

import numpy as np
import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.elman import Elman
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.memory import MAX_LAG
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall


def linear_memory(*matrices):
    family, ids = Linear(input_size=1, hidden_size=3, output_size=1), [f"m{i}" for i in range(len(matrices))]
    params = fresh_params(family, 0, ids) | {"a": torch.stack(matrices).float()}
    return labels.measure(["Memory"], family, params, None, Members(0, ids))


def rotation():
    return torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q


def test_a_linear_network_forgets_at_the_rate_of_its_eigenvalue():
    measured = linear_memory(0.9 * torch.eye(3), 0.5 * rotation(), 0.9 * rotation())
    rates = -torch.tensor([0.9, 0.5, 0.9], dtype=torch.float64).log()
    torch.testing.assert_close(measured["memory_decay_rate"], rates, rtol=1e-6, atol=0)
    torch.testing.assert_close(measured["memory_half_life"], math.log(2) / rates, rtol=1e-6, atol=0)
    torch.testing.assert_close(measured["memory_decay_fit"], torch.ones(3, dtype=torch.float64))


def test_a_network_that_does_not_forget_has_no_half_life():
    measured = linear_memory(1.1 * rotation(), 0.9 * rotation())
    assert measured["memory_decay_rate"][0].item() == pytest.approx(-math.log(1.1), rel=1e-6)
    assert measured["memory_half_life"].isnan().tolist() == [True, False]


def test_a_network_that_forgets_at_once_has_no_rate():
    nilpotent = torch.diag(torch.ones(2), -1)
    measured = linear_memory(nilpotent, 0.9 * rotation())
    assert all(column.isnan().tolist() == [True, False] for column in measured.values())


def test_memory_agrees_with_a_loop_over_starts_and_lags():
    family, ids, task = Elman(input_size=1, hidden_size=4, output_size=2), ["a", "b"], DelayedRecall(delay=2)
    params = fresh_params(family, 0, ids)
    measured = labels.measure(["Memory"], family, params, task, Members(0, ids))
    jacobians = Driven(family, params, task, Members(0, ids)).jacobians.numpy()
    for m in range(2):
        norms = []
        for lag in range(1, MAX_LAG + 1):
            found = []
            for start in range(jacobians.shape[1] - MAX_LAG + 1):
                for lane in range(jacobians.shape[2]):
                    product = np.eye(4)
                    for t in range(start, start + lag):
                        product = jacobians[m, t, lane] @ product
                    found.append(np.log(np.linalg.norm(product)))
            norms.append(np.mean(found))
        lags = np.arange(1, MAX_LAG + 1)
        slope, offset = np.polyfit(lags, norms, 1)
        left = np.var(norms - (slope * lags + offset))
        assert measured["memory_decay_rate"][m].item() == pytest.approx(-slope)
        assert measured["memory_decay_fit"][m].item() == pytest.approx(1 - left / np.var(norms))


@pytest.mark.parametrize("method", ["stacked", "native"])
def test_norms_that_differ_by_the_rounding_of_params_are_all_alike(method):
    family, ids = Linear(input_size=1, hidden_size=3, output_size=1), ["a", "b", "c"]
    slow = math.exp(-1e-4)
    matrices = torch.stack([rotation(), -rotation().T, slow * rotation()]).float()
    params = fresh_params(family, 0, ids) | {"a": matrices}
    measured = labels.measure(["Memory"], family, params, None, Members(0, ids), method)
    assert measured["memory_decay_rate"].tolist() == pytest.approx([0, 0, 1e-4], abs=1e-6)
    assert measured["memory_half_life"].isnan().tolist() == [True, True, False]
    assert measured["memory_decay_fit"].isnan().tolist() == [True, True, False]
    assert measured["memory_decay_fit"][2].item() == pytest.approx(1, abs=1e-4)
