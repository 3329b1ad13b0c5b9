"""Encoders trained, frozen and probed on a small zoo."""

import json

import numpy as np
import pytest
import torch

from probes import encoder_runs, fitting, probe
from probes.benchmark import COSTS, _averaged, benchmark
from probes.curves import read_curves
from probes.encoder_runs import Costs, Run
from tests.probes.page_parser import Page
from tests.weightspace.zoos import write_zoo
from weightspace.families.elman import Elman
from weightspace.store import open_zoo
from weightspace.training.embed import load

ROW = {"features", "target", "learned_with", "split", "metric", "value", "low", "high", "num_train", "num_test"}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    families = [Elman(input_size=1, hidden_size=4, output_size=2)]
    return write_zoo(tmp_path_factory.mktemp("benchmark") / "zoo", families, models=40)


@pytest.fixture(scope="module")
def made(zoo, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, benchmark(zoo, out, seeds=2, targets=["trace"], max_epochs=12)


def test_the_table_has_every_row_of_the_vocabulary_beside_its_costs(made, zoo):
    out, document = made
    assert json.loads((out / "benchmark.json").read_text()) == document
    names = {row["features"] for row in document["rows"]}
    assert {"embedding:MessagePassing", "metadata", "statistics", "spectra", "shuffled"} <= names
    assert {f"embedding:MessagePassing - {other}" for other in ("statistics", "untrained:MessagePassing")} <= names
    assert "embedding:MessagePassing + statistics+spectra - statistics+spectra" in names
    for row in document["rows"]:
        assert set(row) >= ROW | {"num_seeds", *COSTS}
        own = row["features"] in ("embedding:MessagePassing", "untrained:MessagePassing")
        assert all((row[key] is not None) == own for key in COSTS)
        assert row["num_seeds"] == (2 if row["features"].startswith(("embedding:", "untrained:")) else 1)
    assert document["zoo"] == open_zoo(zoo).fingerprint
    assert {run["seed"] for run in document["runs"]} == {0, 1}
    assert "MessagePassing" in (out / "report.html").read_text()


def test_the_report_has_leaderboards_learning_curves_and_the_weights_behind_predictions(made):
    out, document = made
    page = Page((out / "report.html").read_text())
    assert {"leaderboard", "curves", "attribution", "costs", "map"} <= set(page.anchors)
    assert set(page.anchors) <= set(page.ids)
    (board,) = document["leaderboards"]
    (entry,) = board["entries"]
    assert (entry["name"], len(entry["scores"]), board["note"]) == ("embedding:MessagePassing", 2, None)
    (own,) = [
        row
        for row in document["rows"]
        if (row["features"], row["metric"]) == ("embedding:MessagePassing", "r2_within_cell")
    ]
    assert entry["mean"] == pytest.approx(own["value"])
    assert f"{entry['mean']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]" in page.text
    # A loss and a metric of both seeds, against updates and against CPU minutes.
    lines = [attributes for tag, attributes in page.elements if tag == "polyline"]
    assert len(lines) == 2 * 2 * 2
    assert all(len(line["points"].split()) == 12 for line in lines)
    assert "CPU minutes" in page.text
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert any("weight_hh" in image["alt"] for image in images)
    assert page.text.count("MessagePassing 2 seeds") > 2


def test_logs_of_trainings_say_when_each_validation_was(made):
    log = made[0] / "runs" / "MessagePassing-Supervised-0" / "metrics.csv"
    loss, *_ = read_curves(log, "MessagePassing", 0, "Supervised", "in_distribution")
    assert len(loss.updates) == len(loss.values) == 12
    assert loss.updates == sorted(loss.updates)
    assert loss.cpu_minutes is not None
    assert loss.cpu_minutes == sorted(loss.cpu_minutes)
    recorded = json.loads((log.parent / "finished.json").read_text())["training_cpu_seconds"] / 60
    assert 0.2 * recorded < loss.cpu_minutes[-1] <= recorded


def test_a_planted_label_is_learned_and_probed_beside_statistics(made):
    values = {
        (row["features"], row["probe"]): row["value"] for row in made[1]["rows"] if row["metric"] == "r2_within_cell"
    }
    assert values["embedding:MessagePassing", "ridge"] > values["statistics", "ridge"]
    assert values["embedding:MessagePassing", "ridge"] > 0.5


def test_encoders_are_trained_anew_for_every_split_and_fold(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "NUM_PERMUTATIONS", 2)
    monkeypatch.setattr(probe, "MOST_TREES", 3)
    monkeypatch.setattr("probes.encoder_runs._throughput", lambda encoder, data: 1.0)
    zoo = write_zoo(tmp_path / "zoo", models=20, rollouts=False, held_out=True)
    splits = ["new_task", "new_family"]
    document = benchmark(zoo, tmp_path / "out", targets=["trace"], splits=splits, max_epochs=1)
    trained = [run for run in document["runs"] if run["objective"]]
    assert [(run["split"], run["fold"]) for run in trained] == [
        ("new_task", None),
        ("new_family", 0),
        ("new_family", 1),
    ]
    for name, fold in (("new_task", None), ("new_family-0", 0), ("new_family-1", 1)):
        run = tmp_path / "out" / "runs" / f"MessagePassing-Supervised-0-{name}"
        assert load(run / "checkpoints" / "best.ckpt").trained_for == (name.split("-")[0], fold)
    own = [row for row in document["rows"] if row["features"] == "embedding:MessagePassing"]
    assert {(row["split"], row["num_folds"]) for row in own} == {("new_task", 1), ("new_family", 2)}
    assert all(row[key] is not None for row in own for key in COSTS)
    assert all(not notes["unavailable"] for notes in document["splits"].values())


def test_costs_are_those_of_the_encoder(made):
    from weightspace.encoders.message_passing import MessagePassing

    run = made[1]["runs"][0]
    assert run["parameters"] == sum(p.numel() for p in MessagePassing().parameters())
    assert run["models_per_cpu_second"] > 10
    assert 50 < run["peak_memory_mb"] < 20_000


def test_objectives_without_labels_are_reported_as_such_and_budgets_end_training(zoo, tmp_path):
    options = {"cpu_minutes": 2 / 60, "baseline_names": ["statistics"]}
    document = benchmark(zoo, tmp_path, objective="Emulation", targets=["trace"], **options)
    assert document["baselines"] == ["statistics"]
    assert "Only these baselines were probed" in (tmp_path / "report.html").read_text()
    learned = {row["learned_with"] for row in document["rows"] if row["features"] == "embedding:MessagePassing"}
    assert learned == {"no_labels"}
    assert document["runs"][0]["training_cpu_seconds"] < 15


def test_seeds_are_averaged_row_by_row():
    def row(features, value, low, high):
        return {
            "features": features, "probe": "ridge", "target": "t", "split": "s", "metric": "r2",
            "value": value, "low": low, "high": high, "num_seeds": 1, "learned_with": None,
        }  # fmt: skip

    def trained(seed, parameters):
        costs = Costs(
            parameters=parameters, models_per_cpu_second=1.0, peak_memory_mb=2.0, training_cpu_seconds=3.0
        )
        made = {"learned_with": "labels", "embeddings": np.zeros((1, 1)), "costs": costs}
        return Run(encoder="E", objective="O", seed=seed, split="s", fold=None, **made)

    rows = [
        row("embedding:E", 0.2, 0.1, 0.3),
        row("embedding:E#1", 0.4, 0.3, 0.7),
        row("statistics", 0.5, 0.4, None),
        row("embedding:E - statistics", -0.3, -0.4, 0.0),
        row("embedding:E#1 - statistics", -0.1, -0.2, 0.2),
    ]
    found = {one["features"]: one for one in _averaged(rows, [trained(0, 10), trained(1, 20)], False)}
    assert len(found) == 3
    own, difference = found["embedding:E"], found["embedding:E - statistics"]
    assert (own["value"], own["low"], own["high"]) == pytest.approx((0.3, 0.2, 0.5))
    assert (own["num_seeds"], own["parameters"]) == (2, 15.0)
    assert (difference["value"], difference["num_seeds"], difference["parameters"]) == (pytest.approx(-0.2), 2, None)
    assert (found["statistics"]["high"], found["statistics"]["num_seeds"]) == (None, 1)


def test_a_seed_that_failed_is_not_counted_among_those_averaged():
    row = {"features": "embedding:E", "probe": "ridge", "target": "t", "split": "s", "metric": "r2", "num_seeds": 1}
    rows = [row | {"value": 0.2, "low": 0.1, "high": 0.3}]
    rows += [row | {"features": "embedding:E#1", "value": None, "low": None, "high": None, "reason": "failed"}] * 2
    (one,) = _averaged(rows, [], False)
    assert (one["value"], one["num_seeds"]) == (0.2, 1)


def test_embeddings_of_a_run_that_was_killed_do_not_pass_for_those_of_an_earlier_budget(tmp_path, monkeypatch):
    costs = Costs(parameters=1, models_per_cpu_second=1.0, peak_memory_mb=2.0, training_cpu_seconds=3.0)
    earlier, later = (
        Run(encoder="E", objective="O", seed=0, split="s", fold=None, costs=costs, embeddings=np.full((2, 1), value))
        for value in (1.0, 2.0)
    )
    encoder_runs._write(tmp_path, earlier, {"budget": 1})
    assert encoder_runs._read(tmp_path, {"budget": 1}).embeddings.tolist() == earlier.embeddings.tolist()
    write = encoder_runs.write_durably

    def killed(path, data):
        if path.name == encoder_runs.RECORD:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(encoder_runs, "write_durably", killed)
    with pytest.raises(KeyboardInterrupt):
        encoder_runs._write(tmp_path, later, {"budget": 2})
    assert encoder_runs._read(tmp_path, {"budget": 1}) is None


def test_finished_runs_are_read_back_and_a_failure_is_a_row_with_its_error(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "NUM_PERMUTATIONS", 2)
    monkeypatch.setattr(probe, "MOST_TREES", 3)
    monkeypatch.setattr("probes.encoder_runs._throughput", lambda encoder, data: 1.0)
    asked = {"objective": ["Supervised", "Emulation"], "targets": ["trace"], "updates": 3}
    making = encoder_runs.make

    def failing(encoder, objective, targets, seed):
        if objective == "Emulation":
            raise RuntimeError("no\nmemory")
        return making(encoder, objective, targets, seed)

    monkeypatch.setattr(encoder_runs, "make", failing)
    first = benchmark(zoo, tmp_path, **asked)
    failed = [row for row in first["rows"] if row["features"] == "embedding:MessagePassing-Emulation"]
    assert [(row["value"], row["reason"], row["metric"]) for row in failed] == [
        (None, "RuntimeError: no memory", "r2_within_cell")
    ]
    assert "RuntimeError: no memory" in (tmp_path / "report.html").read_text()
    supervised = tmp_path / "runs" / "MessagePassing-Supervised-0"
    kept = (supervised / "finished.json").stat().st_mtime_ns
    checkpoint = torch.load(supervised / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    # Failed runs are tried again, finished ones are not.
    monkeypatch.setattr(encoder_runs, "make", making)
    second = benchmark(zoo, tmp_path, **asked)
    assert (supervised / "finished.json").stat().st_mtime_ns == kept
    named = "embedding:MessagePassing-Supervised"
    assert [r for r in first["rows"] if r["features"] == named] == [r for r in second["rows"] if r["features"] == named]
    assert all(run["error"] is None for run in second["runs"])
    learned = {row["features"]: row["learned_with"] for row in second["rows"]}
    assert learned["embedding:MessagePassing-Emulation"] == "no_labels"
    assert learned["untrained:MessagePassing"] is None


def test_unknown_names_and_numbers_are_refused_before_anything_is_trained(zoo, tmp_path):
    with pytest.raises(ValueError, match=r"No encoder is called 'MesagePassing'.*Did you mean 'MessagePassing'"):
        benchmark(zoo, tmp_path, encoders=["MesagePassing"])
    with pytest.raises(ValueError, match=r"No objective is called 'Emulate'.*Did you mean 'Emulation'"):
        benchmark(zoo, tmp_path, objective="Emulate")
    with pytest.raises(ValueError, match=r"Both `cpu_minutes` and `updates`"):
        benchmark(zoo, tmp_path, cpu_minutes=1.0, updates=2)
    with pytest.raises(ValueError, match=r"`updates` \(=0\)"):
        benchmark(zoo, tmp_path, updates=0)
    with pytest.raises(ValueError, match="`seeds`"):
        benchmark(zoo, tmp_path, seeds=0)
    with pytest.raises(ValueError, match="each once"):
        benchmark(zoo, tmp_path, encoders=["MessagePassing", "MessagePassing"])
    with pytest.raises(ValueError, match=r"No split is called 'new_tasks'.*Did you mean 'new_task'"):
        benchmark(zoo, tmp_path, splits=["new_tasks"])
    with pytest.raises(ValueError, match="No model is held out for the split new_size"):
        benchmark(zoo, tmp_path, splits=["in_distribution", "new_size"])
    with pytest.raises(ValueError, match=r"No baseline is called 'spectre'.*Did you mean 'spectra'"):
        benchmark(zoo, tmp_path, baseline_names=["spectre"])
    with pytest.raises(ValueError, match="`splits` is empty"):
        benchmark(zoo, tmp_path, splits=[])
    assert not list(tmp_path.iterdir())
