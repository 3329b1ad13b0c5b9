"""Trajectories and fixed points of models as arrays."""

import itertools

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.optimize import brentq
from torch import nn

import weightspace as ws
from tests.zoo_builder.test_relabel import run_here
from zoo_builder.bring import bring
from zoo_builder.build import build

RECIPE = {
    "title": "Runs",
    "families": [{"class": "Elman", "hidden_size": 4}, {"class": "LSTM", "hidden_size": 3}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 6, "delay": {"integers": [1, 3]}}],
    "learning": {"class": "BPTT", "num_updates": 2, "batch_size": 4, "learning_rate": 0.01},
    "snapshots": [0, 2],
    "models_per_cohort": 6,
    "shard_size": 3,
    "labels": [],
    "splits": {"test": 0.2, "val": 0.1},
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for name, rollouts in (("stored", {"sequences": 32}), ("bare", None)):
        build({**RECIPE, "rollouts": rollouts}, out / name, engine=run_here, method="torch")
    return out


def test_the_trajectories_of_a_zoo_have_the_outputs_that_it_stores(zoo):
    opened = ws.open_zoo(zoo / "stored")
    rows = [13, 0, 1, 22]
    states, inputs, outputs = opened.trajectories(rows)
    for i, row in enumerate(rows):
        x, answers = opened.rollouts([row])
        np.testing.assert_array_equal(inputs[i], x[0])
        np.testing.assert_allclose(outputs[i], answers[0], atol=1e-5)
        family, params = opened[row]
        assert states[i].shape == (32, 6, family.spec.state_size)
        last = list(family.spec.states).index("h.0") * family.hidden_size
        h = torch.from_numpy(states[i][..., last : last + family.hidden_size])
        read = h @ params["weight_ho"].T + params["bias_o"]
        np.testing.assert_allclose(outputs[i], read, atol=1e-5)
    for own, again in zip(opened.trajectories(), ws.trajectories(str(zoo / "stored")), strict=True):
        assert len(own) == len(opened)
        assert all(np.array_equal(a, b) for a, b in zip(own, again, strict=True))


def test_a_zoo_without_rollouts_runs_on_the_sequences_that_it_would_have_stored(zoo):
    stored, bare = (ws.open_zoo(zoo / name) for name in ("stored", "bare"))
    rows = [7, 2, 15]
    for kind, wanted in zip(bare.trajectories(rows), stored.trajectories(rows), strict=True):
        for own, theirs in zip(kind, wanted, strict=True):
            np.testing.assert_allclose(own, theirs, atol=1e-6)
    chosen = ws.trajectories(bare.filter(family="LSTM", step=2))
    assert len(chosen.states) == 6


def test_imported_networks_run_as_they_did(tmp_path):
    torch.manual_seed(0)
    layer, x = nn.GRU(3, 5, batch_first=True), torch.randn(4, 9, 3)
    (tmp_path / "models").mkdir()
    safetensors.torch.save_file(layer.state_dict(), tmp_path / "models" / "mine.safetensors")
    np.savez(tmp_path / "x.npz", x=x.numpy())
    bring(tmp_path / "models", tmp_path / "driven", inputs=tmp_path / "x.npz")
    bring(tmp_path / "models", tmp_path / "silent")
    (states,), (inputs,), (outputs,) = ws.open_zoo(tmp_path / "driven").trajectories()
    np.testing.assert_array_equal(inputs, x)
    wanted = layer(x)[0].detach()
    for own in (states, outputs):
        np.testing.assert_allclose(own, wanted, atol=1e-6)
    _, (noise,), (answers,) = ws.open_zoo(tmp_path / "silent").trajectories([0])
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1
    np.testing.assert_allclose(answers, layer(torch.from_numpy(noise))[0].detach(), atol=1e-6)


def test_one_network_gives_arrays_and_several_give_lists():
    torch.manual_seed(0)
    layer, x = nn.LSTM(3, 5, batch_first=True), torch.randn(4, 9, 3)
    states, inputs, outputs = ws.trajectories(layer, x)
    assert states.shape == (4, 9, 10)
    np.testing.assert_array_equal(inputs, x)
    np.testing.assert_allclose(outputs, layer(x)[0].detach(), atol=1e-6)
    both = ws.trajectories([layer, nn.GRU(3, 2)], x)
    assert [own.shape for own in both.states] == [(4, 9, 10), (4, 9, 2)]
    np.testing.assert_allclose(both.states[0], states, atol=1e-6)
    first, again, other = (ws.trajectories(layer, seed=seed).inputs for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(ValueError, match="with the 3 inputs of the LSTM"):
        ws.trajectories(layer, x[..., :2])


def bistable(weight_ih=3.0):
    layer = nn.RNN(1, 1)
    values = {"weight_hh_l0": 2.0, "weight_ih_l0": weight_ih, "bias_ih_l0": 0.1, "bias_hh_l0": 0.0}
    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).fill_(value)
    return layer


def roots(bias):
    """All zeros of tanh(2 h + bias) - h, between points so close that none is missed, and the slopes there."""
    grid = np.linspace(-1.001, 1.001, 402)
    signs = np.tanh(2 * grid + bias) - grid
    places = [
        brentq(lambda h: np.tanh(2 * h + bias) - h, low, high)
        for (low, below), (high, above) in itertools.pairwise(zip(grid, signs, strict=True))
        if below * above < 0
    ]
    return np.array(places)


@pytest.mark.parametrize("held", [None, [-0.05], [0.5]])
def test_a_bistable_unit_rests_where_its_equation_says(held):
    wanted = roots(0.1 + 3 * (held or [0.0])[0])
    assert len(wanted) == (1 if held == [0.5] else 3)
    found = ws.fixed_points(bistable(), held=held)
    # Driven hard from side to side, no search has to end at the point between.
    stable = wanted[2 * (1 - wanted**2) < 1]
    np.testing.assert_allclose(np.sort(found.points[found.stable, 0]), stable, atol=1e-8)
    assert all(np.abs(wanted - point).min() < 1e-8 for point in found.points[:, 0])
    np.testing.assert_allclose(found.eigenvalues[:, 0], 2 * (1 - found.points[:, 0] ** 2), atol=1e-7)
    assert (found.speeds < 1e-8).all()


def test_a_network_of_torch_stays_at_its_fixed_points_and_they_are_those_that_the_label_counts():
    torch.manual_seed(1)
    cell = nn.LSTMCell(2, 4)
    with torch.no_grad():
        cell.weight_hh.mul_(4)
    models = [cell, nn.GRU(2, 5)]
    found, counted = ws.fixed_points(models, seed=3), ws.measure(models, "FixedPoints", seed=3)
    assert [len(own.points) for own in found] == counted["num_fixed_points"].tolist()
    share = [own.stable.mean() if len(own.points) else np.nan for own in found]
    np.testing.assert_allclose(share, counted["fixed_points_stable_share"])
    own = found[0]
    assert len(own.points)
    family = ws.from_torch(cell).family
    state = torch.from_numpy(own.points)
    by_name = dict(zip(family.spec.states, state.split(4, dim=1), strict=True))
    h, c = cell.double()(torch.zeros(len(state), 2).double(), (by_name["h.0"], by_name["c.0"]))
    np.testing.assert_allclose(h.detach(), by_name["h.0"], atol=1e-7)
    np.testing.assert_allclose(c.detach(), by_name["c.0"], atol=1e-7)
    jacobian = torch.autograd.functional.jacobian(lambda flat: step(family, cell, flat), state[0])
    values = np.linalg.eigvals(jacobian.numpy())
    np.testing.assert_allclose(sorted(values, key=key), sorted(own.eigenvalues[0], key=key), atol=1e-6)


def key(value):
    return round(value.real, 6), round(value.imag, 6)


def step(family, cell, flat):
    by_name = dict(zip(family.spec.states, flat[None].split(4, dim=1), strict=True))
    h, c = cell(torch.zeros(1, 2).double(), (by_name["h.0"], by_name["c.0"]))
    after = {"h.0": h, "c.0": c}
    return torch.cat([after[name] for name in family.spec.states], dim=1)[0]


def test_a_model_that_is_not_finite_has_no_fixed_points():
    layer = bistable()
    with torch.no_grad():
        layer.weight_hh_l0.fill_(torch.nan)
    assert len(ws.fixed_points(layer).points) == 0


def test_an_input_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`held` has shape \(2,\), expected \(1,\): one input of the Elman"):
        ws.fixed_points(bistable(), held=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"`starts` have shape \(3, 2\), expected \(start, 1\): states of the Elman"):
        ws.fixed_points(bistable(), starts=np.zeros((3, 2)))


def test_a_search_from_states_of_ones_own_finds_the_point_between():
    found = ws.fixed_points(bistable(), starts=np.linspace(-1, 1, 20)[:, None])
    order = np.argsort(found.points[:, 0])
    np.testing.assert_allclose(found.points[order, 0], roots(0.1), atol=1e-8)
    assert found.stable[order].tolist() == [True, False, True]
