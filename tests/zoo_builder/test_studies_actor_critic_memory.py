"""The study of actor-critic learning: pairs of networks, interval, figure and gates, and the recipe of the maze."""

import json
from pathlib import Path

import pytest
import scipy.stats
import torch
import yaml

from weightspace.store import open_zoo
from zoo_builder.build import build
from zoo_builder.cli import main
from zoo_builder.studies.actor_critic_memory import GAIN, ActorCriticMemory, by_model, interval
from zoo_builder.studies.base import Measured
from zoo_builder.workers import in_process

RECIPE = Path(__file__).parents[2] / "configs/zoo/t-maze.yaml"


def test_the_interval_is_that_of_scipy():
    differences = torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.3
    mean, *ends = interval(differences)
    reference = scipy.stats.bootstrap(
        (differences.numpy(),), lambda x, axis: x.mean(axis), n_resamples=20_000, method="percentile", rng=0
    )
    assert mean == pytest.approx(differences.numpy().mean())
    assert ends == pytest.approx(list(reference.confidence_interval), abs=0.03)


def test_networks_that_are_the_same_both_ways_show_no_gain():
    assert interval(torch.zeros(5, dtype=torch.float64)) == (0.0, 0.0, 0.0)


def test_the_figure_has_a_line_for_each_network_and_each_pair():
    curves = {"step": [0, 5, 10], "rtrl": torch.rand(4, 3), "truncated": torch.rand(4, 3), "gain": (0.5, 0.4, 0.6)}
    learning, pairs = ActorCriticMemory().draw(Measured({}, curves)).axes
    assert len(learning.lines) == 2 * 5 + 1
    assert len(pairs.lines) == 4 + 1
    assert list(pairs.lines[1].get_ydata()) == [curves["truncated"][1, -1], curves["rtrl"][1, -1]]


def test_a_small_study_pairs_networks_that_begin_alike(tmp_path):
    small = ActorCriticMemory(hidden_size=3, corridor_length=2, segment=2, num_updates=2, models=3)
    for name, recipe in small.recipes.items():
        build(recipe, tmp_path / name, engine=in_process.run_shards)
    exact, cut = (open_zoo(tmp_path / name) for name in ("rtrl", "truncated"))
    measured = small.measure({"rtrl": exact, "truncated": cut})
    assert list(measured.values) == [gate.name for gate in small.gates]
    assert exact.table["model_id"].equals(cut.table["model_id"])
    (first, other), steps = (zoo.stack(range(len(zoo.table))) for zoo in (exact, cut)), exact.table["step"].to_pylist()
    begins = torch.tensor([step == 0 for step in steps])
    for name, value in first.params.items():
        assert torch.equal(value[begins], other.params[name][begins])
    assert any(not torch.equal(value, other.params[name]) for name, value in first.params.items())
    returns = [by_model(zoo, "episode_return", 3)[:, -1] for zoo in (exact, cut)]
    assert measured.values[GAIN] == interval(returns[0] - returns[1])[1]


def test_the_recipe_builds_zoos_of_models_that_act_and_of_models_that_imitate(tmp_path):
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe |= {"models_per_cohort": 2, "snapshots": [0, 2], "labels": ["EpisodeReturn", "Performance"]}
    recipe["families"][0]["hidden_size"], recipe["tasks"][0]["corridor_length"] = 3, 3
    recipe["learning"] = [{**entry, "num_updates": 2} for entry in recipe["learning"]]
    build(recipe, tmp_path / "zoo", engine=in_process.run_shards)
    zoo = open_zoo(tmp_path / "zoo")
    kinds = [json.loads(text) for text in zoo.table["learning_config"].to_pylist()]
    assert {(kind["class"], kind.get("gradient")) for kind in kinds} == {
        ("ActorCritic", "rtrl"),
        ("ActorCritic", "truncated"),
        ("BPTT", None),
    }
    returns = zoo.table["episode_return"].to_pylist()
    assert len(returns) == 12
    # Walking into a wall twelve times; rewards are float32.
    assert all(-1.2 - 1e-6 < value <= 1 for value in returns)
    task = zoo.manifest["tasks"]["TMaze"]
    assert (task["output_kind"], task["input_kind"], task["input_range"]) == ("categorical", "values", [0.0, 1.0])


@pytest.mark.slow
def test_the_study_passes_its_gates_in_ten_cpu_minutes(tmp_path):
    assert main(["study", "run", "ActorCriticMemory", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "ActorCriticMemory/result.json").read_text())["cpu_seconds"] < 600
