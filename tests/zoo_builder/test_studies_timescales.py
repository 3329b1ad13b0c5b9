"""The timescales study: fits against closed forms and scipy, accuracies against a count by hand, its figure."""

import json
import math

import numpy as np
import pytest
import scipy.optimize
import torch

from weightspace import families
from weightspace.rollout import Streams, rollout
from weightspace.store import open_zoo
from zoo_builder.cli import main
from zoo_builder.studies import timescales
from zoo_builder.studies.network_timescales import LARGEST_LAG, TAUS, autocorrelations, fitted, network_timescales
from zoo_builder.studies.run import run_study
from zoo_builder.studies.timescales import FairParity, Timescales, accuracies, curves_of, from_level_down, largest

LAGS = torch.arange(LARGEST_LAG + 1, dtype=torch.float64)
SPACING = (TAUS[1] / TAUS[0]).item()
"""How far a time scale may be off: the next candidate."""


def near(tau, expected):
    return expected / SPACING < tau < expected * SPACING


def test_one_exponential_has_its_own_time_scale_and_of_two_the_slower_counts():
    slow = [0.8, 3.0, 17.0, 60.0]
    one = torch.stack([torch.exp(-LAGS / tau) for tau in slow])
    two = 0.6 * torch.exp(-LAGS / 1.5) + 0.4 * torch.exp(-LAGS / 20)
    found = fitted(torch.cat([one, two[None]])).tolist()
    assert all(near(tau, expected) for tau, expected in zip(found, [*slow, 20.0], strict=True))


def test_noisy_autocorrelations_have_the_time_scales_that_scipy_fits():
    noise = np.random.default_rng(0).normal(scale=0.005, size=(6, len(LAGS)))
    lags = LAGS.numpy()
    truths = [(0.5, 1, 12), (0.3, 2, 30), (0.7, 1, 8), (0.5, 3, 40), (1, 4, 9), (0, 1, 6)]
    for row, (share, fast, slow) in enumerate(truths):
        curve = share * np.exp(-lags / fast) + (1 - share) * np.exp(-lags / slow) + noise[row]
        models = {
            2: (lambda t, a, tau: a * np.exp(-t / tau), (1, 5), ([0, 0.1], [1, 100])),
            4: (
                lambda t, a, c, fast, slow: a * (c * np.exp(-t / fast) + (1 - c) * np.exp(-t / slow)),
                (0.9, 0.5, 2, 20),
                ([0, 0, 0.1, 0.1], [1, 1, 100, 100]),
            ),
        }
        criteria, slowest = {}, {}
        for count, (model, start, bounds) in models.items():
            best, _ = scipy.optimize.curve_fit(model, lags, curve, p0=start, bounds=bounds, maxfev=20000)
            residual = np.sum((model(lags, *best) - curve) ** 2)
            criteria[count] = 2 * count + len(lags) * math.log(residual / len(lags))
            slowest[count] = max(best[count // 2 :])
        expected = slowest[min(criteria, key=criteria.get)]
        assert fitted(torch.tensor(curve)[None]).item() == pytest.approx(expected, rel=0.15)


def test_autocorrelations_are_means_over_trials_of_lagged_products():
    states = torch.randn(2, 60, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(1)
    states[1, :, :, 2] = 5.0
    found = autocorrelations(states)
    for model, neuron in ((0, 0), (1, 3)):
        trials = states[model, :, :, neuron].T.numpy()
        trials = [trial - trial.mean() for trial in trials]
        covariance = [np.mean([np.mean(t[: 60 - lag] * t[lag:]) for t in trials]) for lag in range(LARGEST_LAG + 1)]
        assert found[model, neuron].numpy() == pytest.approx(np.array(covariance) / covariance[0], abs=1e-12)
    assert found[1, 2].isnan().all()
    assert fitted(found[1]).isnan().tolist() == [False, False, True, False]


def test_neurons_without_connections_keep_their_own_time_constant():
    family = families.load("Leaky", {"input_size": 1, "hidden_size": 3, "output_size": 2})
    params = {name: torch.zeros(1, *family.spec.shape(name)) for name in family.spec.tensors}
    params["weight_ih"][:] = 1.0
    params["tau"][:] = torch.tensor([1.5, 5.0, 10.0])
    found = network_timescales(family, params, Streams(0, ["a"], "test"), "stacked")[0].tolist()
    for tau, own in zip(found, [1.5, 5.0, 10.0], strict=True):
        # Bits are without memory, so the activity's is that of the leak: (1 - 1/tau)^t.
        assert tau == pytest.approx(-1 / math.log(1 - 1 / own), rel=0.2)


@pytest.fixture(scope="module")
def small():
    return Timescales(
        hidden_size=6, num_updates=20, batch_size=4, models=2, largest_single=4, largest_many=5, exam_every=10
    )


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("timescales")
    return out, run_study(small, out)


def test_a_small_study_measures_every_gate_and_draws_four_panels(small, done):
    out, result = done
    assert [gate["name"] for gate in result["gates"]] == [gate.name for gate in small.gates]
    zoo = open_zoo(out / "Timescales/parity")
    measured = small.measure({"parity": zoo})
    for heads, models in (("single", 2), ("many", 2)):
        curves = measured.curves[heads]
        assert curves["step"].tolist() == [[0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]] * models
        assert {curves[name].shape for name in ("level", "tau", "tau_net", "radius")} == {(models, 11)}
        assert (curves["tau"] >= 1).all()
    figure = small.draw(measured)
    assert len(figure.axes) == 4
    assert {axes.get_ylabel() for axes in figure.axes} >= {"mean tau (steps)", "mean tau_net (steps)"}


def test_time_constants_and_radii_are_those_of_what_the_networks_use(small, done):
    zoo = open_zoo(done[0] / "Timescales/parity")
    curves = curves_of(zoo, "many")
    rows = [
        row
        for row, (task, step) in enumerate(
            zip(zoo.table["task_config"].to_pylist(), zoo.table["step"].to_pylist(), strict=True)
        )
        if json.loads(task)["heads"] == "many" and step == 20
    ]
    stack = zoo.stack(rows)
    for place in range(len(rows)):
        weight = stack.params["weight_hh"][place].double().numpy()
        np.fill_diagonal(weight, 0)
        assert curves["radius"][place, -1].item() == pytest.approx(np.abs(np.linalg.eigvals(weight)).max(), rel=1e-6)
        tau = np.maximum(stack.params["tau"][place].double().numpy(), 1)
        assert curves["tau"][place, -1].item() == pytest.approx(tau.mean(), rel=1e-6)


@pytest.mark.parametrize("heads", ["single", "many"])
def test_accuracies_are_a_count_of_right_answers_on_every_n_up_to_the_level(heads, done):
    zoo = open_zoo(done[0] / "Timescales/parity")
    tasks = [json.loads(task) for task in zoo.table["task_config"].to_pylist()]
    (row, *_) = [row for row, task in enumerate(tasks) if task["heads"] == heads]
    stack, largest = zoo.stack([row]), tasks[row]["max_n"]
    found = accuracies(zoo, stack, torch.tensor([4.0]))[0]
    asked = FairParity(max_n=largest, n=largest, heads="many")
    streams = Streams(0, [zoo.table["model_id"][row].as_py()], "timescales/accuracy")
    batch = asked.sample({"n": torch.tensor([4.0])}, streams, timescales.SEQUENCES, "test")
    bits = batch.x[0, :, :, 0].long()
    assert bits.double().mean().item() < 0.5 < 1.5 * bits[-4:].double().mean().item()
    outputs = rollout(stack.family, stack.params, batch.x, method="sequential").outputs[0, -1]
    for n in (2, 3, 4):
        head = 0 if heads == "single" else n - 2
        odd = outputs[:, 2 * head + 1] > outputs[:, 2 * head]
        right = [int(answer) == sum(row) % 2 for answer, row in zip(odd, bits[-n:].T.tolist(), strict=True)]
        assert found[n - 2].item() == pytest.approx(np.mean(right), abs=2 / timescales.SEQUENCES)
    assert found[3:].isnan().all()


def test_accuracies_are_counted_from_the_level_down():
    accuracy = torch.tensor([[0.2, 0.3, 0.4], [0.2, 0.3, math.nan], [0.2, math.nan, math.nan]])
    found = from_level_down(accuracy, torch.tensor([4.0, 3.0, 2.0]))
    expected = torch.tensor([[0.4, 0.3, 0.2], [0.3, 0.2, math.nan], [0.2, math.nan, math.nan]])
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))
    assert largest(found[:, 1:]) == pytest.approx(0.3)
    assert largest(found[2:, 1:]).isnan()
    assert largest(found[:, 3:].nanmean(1)).isnan()


@pytest.mark.slow
def test_the_study_passes_its_gates_in_ten_cpu_minutes(tmp_path):
    assert main(["study", "run", "Timescales", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "Timescales/result.json").read_text())
    assert all(gate["passed"] for gate in result["gates"])
    assert result["cpu_seconds"] < 600
