"""The timescales study: accuracies against a count by hand, its curves and its figure."""

import json
import math

import numpy as np
import pytest
import torch

from weightspace.rollout import Streams, rollout
from weightspace.store import open_zoo
from zoo_builder.cli import main
from zoo_builder.studies import timescales
from zoo_builder.studies.run import run_study
from zoo_builder.studies.timescales import FairParity, Timescales, accuracies, curves_of, from_level_down, largest


@pytest.fixture(scope="module")
def small():
    return Timescales(
        hidden_size=6, num_updates=20, batch_size=4, models=2, largest_single=4, largest_many=5, exam_every=10
    )


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("timescales")
    return out, run_study(small, out)


def test_a_small_study_measures_every_gate_and_draws_six_panels(small, done):
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
    assert len(figure.axes) == 6
    assert all(len(axes.lines) == 4 for axes in figure.axes[4:])
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
