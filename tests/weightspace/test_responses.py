"""Responses to fixed inputs, against direct computation and under the symmetry that each family declares."""

import numpy as np
import pytest
import torch

from tests.weightspace.zoos import write_zoo
from weightspace import responses
from weightspace.families import available
from weightspace.families.elman import Elman
from weightspace.responses import ADJACENT, described, responses_of
from weightspace.store import Stack, open_zoo

FAMILIES = [kind.examples()[0] for kind in available().values()]


def drawn(family, models=2):
    generator = torch.Generator().manual_seed(0)
    one = [family.spec.random_params(generator) for _ in range(models)]
    return {name: torch.stack([params[name] for params in one]) for name in one[0]}


def test_a_linear_network_has_the_responses_of_its_matrices():
    family = Elman(input_size=2, hidden_size=3, output_size=2, nonlinearity="relu")
    params = {name: torch.zeros(1, *family.spec.shape(name), dtype=torch.float64) for name in family.spec.tensors}
    # Far above 0, relu is the identity.
    w = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.4, 0.2], [0.1, 0.0, 0.3]], dtype=torch.float64)
    params["weight_hh.0"][0], params["bias.0"][0] = w, 50.0
    params["weight_ih.0"][0], params["weight_ho"][0] = torch.eye(3, 2), torch.eye(2, 3)
    x = torch.randn(1, 16, 3, 2, generator=torch.Generator().manual_seed(0))
    columns = {name: float(value[0]) for name, value in described(Stack(family, params, torch.arange(1)), x)}
    for lag in (1, 2, 4, 8):
        power = np.linalg.matrix_power(w.numpy(), lag)
        expected = np.log(np.linalg.norm(power) / np.sqrt(3))
        assert columns[f"kick.{lag}"] == pytest.approx(expected, abs=1e-6)
    states, h = [], torch.zeros(3, 3, dtype=torch.float64)
    for step in x[0].double():
        h = torch.relu(h @ w.T + step @ torch.eye(3, 2, dtype=torch.float64).T + 50.0)
        states.append(h)
    states = torch.stack(states)
    centred = (states - states.mean((0, 1))).flatten(0, 1).numpy()
    shares = np.linalg.svd(centred, compute_uv=False) ** 2
    shares /= shares.sum()
    assert columns["states.entropy_rank"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))) / 3)
    assert [columns[f"states.share.{i}"] for i in range(3)] == pytest.approx(np.log(shares))
    assert columns["outputs.mean.1"] == pytest.approx(float(states[..., 1].mean()))
    scaled = centred / np.sqrt(np.mean(centred**2))
    rows = scaled.reshape(16, 3, 3)
    assert columns["states.autocorrelation.2"] == pytest.approx(np.mean(rows[2:] * rows[:-2]))
    inputs = (x - x.mean((1, 2)))[0].double().numpy()
    inputs /= np.sqrt(np.mean(inputs**2))
    correlation = np.einsum("tsi,tso->io", inputs[:-3], rows[3:]) / (13 * 3)
    assert columns["states.echo.3"] == pytest.approx(np.log(np.sqrt(np.mean(correlation**2))), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_declared_permutations_and_signs_leave_responses_unchanged(family, monkeypatch):
    params, generator = drawn(family), torch.Generator().manual_seed(1)
    elements = family.spec.random_elements(2, generator, torch.float64)
    signs = {name: factor.sign() for name, factor in elements.gauges.items()}
    moved = family.spec.act_stacked(type(elements)(elements.permutations, signs), params)
    x = torch.randn(1, 6, 2, family.input_size, generator=generator)
    # Compiling takes seconds; the reference is as good here.
    run = responses.rollout
    monkeypatch.setattr(responses, "rollout", lambda *a, method, **options: run(*a, method="stacked", **options))
    before, after = (dict(described(Stack(family, side, torch.arange(2)), x)) for side in (params, moved))
    assert set(before) == set(after)
    for name, values in before.items():
        assert torch.isfinite(values).all(), name
        # Central differences of spikes, and logarithms of what is almost 0, are rounded more.
        torch.testing.assert_close(after[name], values, atol=1e-5, rtol=1e-5, msg=name)


def test_every_model_of_a_zoo_has_responses_to_random_inputs_and_to_its_task(tmp_path):
    zoo = open_zoo(write_zoo(tmp_path / "zoo", models=5))
    columns = responses_of(zoo)
    assert np.isfinite(columns.values).all()
    for kind in ("random", "task"):
        assert columns.present[:, columns.names.index(f"{kind}.states.entropy_rank")].all()
    assert not np.allclose(columns.values[0], columns.values[1])


def test_every_label_of_the_growth_of_kicks_and_of_the_autocorrelation_of_states_is_marked():
    assert {"largest_lyapunov", "lyapunov_1", "memory_decay_rate", "autocorrelation_time"} <= set(ADJACENT)
