"""Spectral radii and Lyapunov exponents against closed forms and numpy."""

import math

import numpy as np
import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.lif import LIF
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.driven import WINDOW
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall


def test_a_linear_network_has_the_exponent_of_its_largest_eigenvalue():
    family, ids = Linear(input_size=1, hidden_size=3, output_size=1), ["a", "b", "c"]
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    sheared = torch.tensor([[0.9, 5.0, 1.0], [0.0, 0.4, 2.0], [0.0, 0.0, 0.2]])
    matrices = torch.stack([0.9 * rotation, 1.2 * rotation, sheared])
    params = fresh_params(family, 0, ids) | {"a": matrices}
    measured = labels.measure(["Dynamics"], family, params, None, Members(0, ids))
    expected = torch.tensor([0.9, 1.2, 0.9], dtype=torch.float64)
    torch.testing.assert_close(measured["largest_lyapunov"], expected.log(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured["spectral_radius"], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(measured["a_spectral_radius"], expected, rtol=1e-6, atol=0)


def test_a_tangent_vector_that_vanishes_has_no_exponent():
    family = Linear(input_size=1, hidden_size=3, output_size=1)
    params = fresh_params(family, 0, ["a", "b"])
    params["a"][0] = torch.diag(torch.ones(2), -1)
    measured = labels.measure(["Dynamics"], family, params, None, Members(0, ["a", "b"]))
    assert measured["largest_lyapunov"].isnan().tolist() == [True, False]
    assert measured["spectral_radius"][0].item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("method", ["native", "stacked"])
def test_the_exponent_of_a_network_that_spikes_is_that_of_its_surrogate_as_the_definition_says(method):
    family = LIF(input_size=1, hidden_size=3, output_size=1, surrogate_slope=1.0)
    params = {name: torch.zeros_like(value) for name, value in fresh_params(family, 0, ["a", "b"]).items()}
    params["tau"] = torch.tensor([[50.0] * 3, [20.0] * 3])
    measured = labels.measure(["Dynamics"], family, params, None, Members(0, ["a", "b"]), method=method)
    # Nothing ever fires, and the true exponents are -1 / tau; the surrogate of the reset at v = 0 is 1 / (1 + 1)^2.
    expected = torch.tensor([math.exp(-1 / 50), math.exp(-1 / 20)], dtype=torch.float64) - 0.25
    torch.testing.assert_close(measured["largest_lyapunov"], expected.log(), rtol=1e-6, atol=0)
    assert "surrogate" in labels.columns(["Dynamics"], [family.effective_spec])["largest_lyapunov"].definition


def test_the_exponent_agrees_with_a_loop_that_starts_from_other_vectors():
    family, ids, task = Elman(input_size=1, hidden_size=4, output_size=2), ["a", "b"], DelayedRecall(delay=2)
    params = fresh_params(family, 0, ids)
    params["weight_hh.0"] = params["weight_hh.0"] * 2
    driven = Driven(family, params, task, Members(0, ids))
    states, growth = driven.trajectory.before.numpy(), driven.trajectory.log_growth
    skipped = WINDOW // 2
    for m in range(2):
        w, found = params["weight_hh.0"][m].double().numpy(), []
        for lane in range(states.shape[2]):
            tangent = np.ones(4)
            for t in range(WINDOW - 1):
                # The state after the step gives the slope of tanh at it.
                tangent = (1 - states[m, t + 1, lane] ** 2) * (w @ tangent)
                length = np.linalg.norm(tangent)
                tangent = tangent / length
                if t >= skipped:
                    found.append(math.log(length))
        assert growth[m, skipped:-1].mean().item() == pytest.approx(np.mean(found), abs=0.01)


def test_spectral_radii_of_gate_rows_agree_with_numpy():
    family, ids = GRU(input_size=1, hidden_size=4, output_size=2), ["a", "b"]
    params = fresh_params(family, 0, ids)
    measured = labels.measure(["Dynamics"], family, params, DelayedRecall(), Members(0, ids))
    for m in range(2):
        for row, name in enumerate("rzn"):
            expected = np.abs(np.linalg.eigvals(params["weight_hh.0"][m, row].double().numpy())).max()
            assert measured[f"weight_hh_0_{name}_spectral_radius"][m].item() == pytest.approx(expected)
