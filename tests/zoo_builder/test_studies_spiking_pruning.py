"""The study of pruning: its numbers against numpy, its pairs at equal rates, its table and its figure."""

import json

import numpy as np
import pytest
import torch

from weightspace.rollout import Streams, generator, rollout
from weightspace.store import open_zoo
from zoo_builder.build import build
from zoo_builder.cli import main
from zoo_builder.learning.pruned import CHOICES
from zoo_builder.studies import pruning_runs, spiking_pruning
from zoo_builder.studies.pruning_runs import Memories, clustered, driven, memories, slow_errors, slowest
from zoo_builder.studies.spiking_pruning import (
    DENSE,
    KEPT,
    LEARNED,
    PUBLISHED,
    READOUT,
    SAME,
    TASKS,
    SpikingPruning,
    largest_difference,
    scores_of,
)
from zoo_builder.workers import in_process


@pytest.fixture(scope="module")
def study():
    return SpikingPruning(size=40, draws=2, paired_size=9, pairs=3, hidden_size=8, nets=2, models=4, num_updates=2)


@pytest.fixture(scope="module")
def zoos(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruning")
    for name, recipe in study.recipes.items():
        tasks = {"tasks": [{"class": task, "num_steps": 6} for task in TASKS]} if name == "pruned" else {}
        build({**recipe, **tasks}, out / name, engine=in_process.run_shards)
    return {name: open_zoo(out / name) for name in study.recipes}


@pytest.fixture(scope="module")
def measured(study, zoos):
    with pytest.MonkeyPatch.context() as patch:
        for name, few in {"HOLDS": 40, "LANES": 4, "TRIALS": 3}.items():
            patch.setattr(pruning_runs, name, few)
        return study.measure(zoos)


def test_clusters_are_dense_inside_and_joined_by_few_weak_connections():
    weight = clustered(60, generator(0, "m", "c"))
    assert np.array_equal(weight, weight.T)
    blocks = weight.reshape(3, 20, 3, 20).transpose(0, 2, 1, 3)
    between = np.stack([blocks[i, j] for i in range(3) for j in range(3) if i != j])
    assert (between != 0).sum() == 2 * pruning_runs.BETWEEN
    assert between.max() == pruning_runs.WEAK
    inside = np.stack([blocks[i, i] for i in range(3)])
    assert (inside != 0).mean() == pytest.approx(0.6 * 19 / 20, abs=0.05)
    assert inside[inside != 0].min() >= 0.5


def test_slow_eigenvalues_are_those_of_the_laplacian():
    weight = clustered(60, generator(0, "m", "c"))
    laplacian = np.diag(weight.sum(1)) - weight
    exact = np.sort(np.linalg.eigvalsh(laplacian))[:3]
    np.testing.assert_allclose(-slowest(weight).real - 0.02, exact, atol=1e-9)
    # A connected graph: one mode decays by the leak alone.
    assert exact[0] == pytest.approx(0, abs=1e-9)
    assert exact[1] > 1e-3


def test_pruning_nothing_has_no_error_and_every_rule_an_error_at_every_density():
    errors = slow_errors(30, 2, 0)
    assert len(errors) == 4 * 3
    assert all(len(column) == 2 and (column > 0).all() for column in errors.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning_runs, "DENSITIES", (1.0,))
        assert max(float(column.max()) for column in slow_errors(30, 2, 0).values()) < 1e-9


def test_twins_have_the_mean_time_constant_and_a_drive_that_equals_rates(zoos):
    stack, seen = zoos["pairs"].stack([0, 1, 2]), []

    def watched(params, drive):
        seen.append((params, drive))
        return driven(params, drive)

    with pytest.MonkeyPatch.context() as patch:
        for name, few in {"HOLDS": 40, "LANES": 4, "TRIALS": 7}.items():
            patch.setattr(pruning_runs, name, few)
        patch.setattr(pruning_runs, "driven", watched)
        found = memories(stack, Streams(0, ["a", "b", "c"], "t"), "native")
    params, drive = seen[-1]
    assert torch.equal(params["tau"], stack.params["tau"].mean(1, keepdim=True).expand(3, 9))
    assert torch.equal(params["weight_hh"], stack.params["weight_hh"])
    own, other = found.rates
    assert (other - own).abs().max() < (found.unmatched - own).abs().max()
    assert found.heterogeneous.shape == found.homogeneous.shape == (3,)
    assert drive.abs().max() < pruning_runs.WIDEST


def test_memory_is_that_of_the_potentials_read_by_least_squares(zoos):
    stack = zoos["pairs"].stack([0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning_runs, "HOLDS", 60)
        u = 0.1 * (2 * torch.rand(1, 80, 16, generator=generator(0, "m", "u")) - 1)
        found, rate = pruning_runs.remembered(stack, u, "native")
    x = u.repeat_interleave(10, 1)[..., None]
    v = rollout(stack.family, stack.params, x, method="native").states["v"][0]
    potentials, past = v[9::10].double().numpy(), u[0].double().numpy()
    total = 0.0
    for lag in range(1, 13):
        sides = []
        for lanes in (slice(0, 8), slice(8, 16)):
            h = potentials[20:, lanes].reshape(-1, 9)
            sides.append((np.column_stack([h, np.ones(len(h))]), past[20 - lag : 80 - lag, lanes].flatten()))
        weights = np.linalg.lstsq(*sides[0], rcond=None)[0]
        total += np.corrcoef(sides[1][0] @ weights, sides[1][1])[0, 1] ** 2 - 1 / (len(sides[1][1]) - 1)
    assert float(found) == pytest.approx(total, abs=1e-3)
    assert float(rate) == pytest.approx(float((v > 1).double().mean()))


def test_gates_compare_networks_before_and_after_training(zoos, measured):
    zoo = zoos["pruned"]
    rows = zoo.table.to_pylist()
    configs = [json.loads(row["learning_config"]) for row in rows]
    final = {}
    for task in TASKS:
        for rule, said in (("published", {"method": "lyapunov_noise"}), ("dense", {"density": 1.0})):
            own = [row for row, config in zip(rows, configs, strict=True) if said.items() <= config.items()]
            final[task, rule] = np.mean([row["score"] for row in own if row["task"] == task and row["step"] == 2])
    assert measured.values[LEARNED] == pytest.approx(min(final[task, "published"] for task in TASKS), rel=1e-5)
    shares = [final[task, "published"] / final[task, "dense"] for task in TASKS]
    assert measured.values[KEPT] == pytest.approx(min(shares), rel=1e-5)
    assert measured.values[SAME] == 0
    dense = next(row for row in measured.reported if row["pruning"] == DENSE)
    assert dense["edge_density"] == pytest.approx(8 * 2 / (8 * 7))
    assert dense["edge_density_with_readout"] == pytest.approx((16 + 24) / (56 + 24))
    assert measured.values[READOUT] > 1
    assert {row["pruning"] for row in measured.reported} == {*CHOICES, DENSE}


@pytest.mark.parametrize("task", TASKS)
def test_a_network_without_a_score_passes_no_gate(study, zoos, task, monkeypatch):
    def without(zoo):
        scores = scores_of(zoo)
        scores[PUBLISHED, task][1, 0] = torch.nan
        return scores

    monkeypatch.setattr(spiking_pruning, "scores_of", without)
    ones = torch.ones(3)
    alike = Memories(heterogeneous=ones, homogeneous=ones, rates=(ones, ones), unmatched=ones)
    monkeypatch.setattr(spiking_pruning, "memories", lambda *_: alike)
    values = study.measure(zoos).values
    assert not any(gate.passes(values[gate.name]) for gate in study.gates if gate.name in (LEARNED, KEPT))
    assert np.isnan([values[LEARNED], values[KEPT]]).all()


def test_networks_that_differ_before_training_are_seen(zoos):
    zoo = zoos["pruned"]

    class Shifted:
        """The zoo with other weights in its last row."""

        table = zoo.table

        def stacks(self, rows):
            stacks = list(zoo.stacks(rows))
            stacks[-1].params["bias"][-1] += 0.5
            return stacks

    assert largest_difference(Shifted()) == pytest.approx(0.5)


def test_the_figure_has_modes_pairs_and_scores(study, measured):
    figure = study.draw(measured)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["Slow modes of linear networks", "Memory capacity (inputs)"]
    assert len(figure.axes[2].containers) == 2 * (len(CHOICES) + 1)
    assert isinstance(measured.curves["pairs"], Memories)


@pytest.mark.slow
def test_the_study_passes_its_gates_in_ten_cpu_minutes(tmp_path):
    assert main(["study", "run", "SpikingPruning", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "SpikingPruning/result.json").read_text())
    assert all(gate["passed"] for gate in result["gates"])
    assert result["cpu_seconds"] < 600
