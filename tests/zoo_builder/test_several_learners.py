"""Recipes with several learners, among them one of the user's own."""

import json
import os
from pathlib import Path

import pytest
import yaml

from tests.zoo_builder.test_relabel import contents, run_here
from weightspace.components import plugins
from weightspace.store import open_zoo, verify
from zoo_builder import cli
from zoo_builder.build import build
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe

PACKAGES = Path(__file__).parent / "packages"
RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 3}, {"class": "GRU", "hidden_size": 2}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 6, "delay": {"integers": [1, 4]}}],
    "learning": {"class": "BPTT", "num_updates": 4, "batch_size": 3, "learning_rate": {"choice": [0.01, 0.02]}},
    "snapshots": [0, 4],
    "models_per_cohort": 4,
    "shard_size": 4,
    "labels": ["Performance"],
    "rollouts": {"sequences": 2},
}
BPTT = RECIPE["learning"]
WINDOWED = {"class": "WindowedBPTT", "num_updates": 4, "batch_size": 3, "window": 2}


@pytest.fixture(autouse=True)
def own_packages(monkeypatch):
    """Python finds the user's packages; what a command allows is forgotten after the test."""
    monkeypatch.syspath_prepend(PACKAGES)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES), prepend=os.pathsep)
    monkeypatch.setattr(plugins, "_allowed", {})


def plan_of(*learners, **fields):
    return make_plan(read_recipe({**RECIPE, "learning": list(learners), **fields}))


def names(plan):
    return [cohort.name for cohort in plan.cohorts]


def dry_run(recipe, folder, *options):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return cli.main(["build", "--config", str(path), "--out", str(folder / "zoo"), "--dry_run", *options])


def test_a_list_of_one_learner_is_the_same_zoo_as_the_learner_alone(tmp_path):
    for name, entry in (("alone", BPTT), ("list", [BPTT])):
        build({**RECIPE, "learning": entry}, tmp_path / name, engine=run_here)
    assert contents(tmp_path / "alone") == contents(tmp_path / "list")


def test_cohorts_are_named_by_their_learner_where_there_are_several():
    alone = names(make_plan(read_recipe(RECIPE)))
    # Names, and with them all random streams, are those of earlier versions.
    assert alone == ["elman-hidden3-delayed_recall-4a3fe1", "gru-hidden2-delayed_recall-5f01f1"]
    plugins.allow("trial_learners")
    both = plan_of(BPTT, WINDOWED)
    assert [name.rpartition("-")[0] for name in names(both)] == [
        "elman-hidden3-delayed_recall-bptt",
        "elman-hidden3-delayed_recall-windowed_bptt",
        "gru-hidden2-delayed_recall-bptt",
        "gru-hidden2-delayed_recall-windowed_bptt",
    ]
    assert names(plan_of(WINDOWED, BPTT)) == names(both)
    assert [type(cohort.learner).__name__ for cohort in both.cohorts] == ["BPTT", "WindowedBPTT"] * 2
    assert [set(cohort.learning_spreads) for cohort in both.cohorts] == [{"learning_rate"}, set()] * 2
    assert {cohort.fold_family for cohort in both.cohorts} == {0, 1}


@pytest.mark.parametrize(
    "other",
    [
        {"batch_size": 4},
        {"learning_rate": 0.01},
        {"learning_rate": {"uniform": [0.01, 0.02]}},
        {"schedule": {"warm_up": 1}},
    ],
    ids=str,
)
def test_learners_of_one_class_make_cohorts_of_their_own(other):
    assert len(set(names(plan_of(BPTT, {**BPTT, **other})))) == 4


def test_a_learner_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match=r"gives the cohort 'elman-hidden3-delayed_recall-bptt-.*' twice"):
        plan_of(BPTT, {**BPTT, "weight_decay": 0.0})


@pytest.mark.parametrize(
    ("learning", "message"),
    [
        ([], "`learning` is an empty list; give at least one entry"),
        ([BPTT, "BPTT"], r"`learning\[1\]` must be an entry with a `class`, found 'BPTT'"),
        ([BPTT, {**BPTT, "num_updates": 3}], "Snapshot 4 comes after the last of 3 updates of BPTT"),
        ([BPTT, {"class": "Planted"}], "Planted learns no task; remove `tasks`"),
        ({"class": "WindowedBPTT"}, "No learner is called 'WindowedBPTT'"),
    ],
)
def test_lists_of_learners_that_make_no_sense_are_refused(learning, message, tmp_path, capsys):
    assert dry_run({**RECIPE, "learning": learning}, tmp_path) == 2
    assert message.replace("\\", "") in capsys.readouterr().err


def test_a_family_that_a_learner_cannot_take_is_refused_by_a_dry_run(tmp_path, capsys):
    planted = {**RECIPE, "tasks": [], "rollouts": None, "labels": [], "learning": {"class": "Planted"}}
    planted |= {"families": [{"class": "GRU", "hidden_size": 2, "input_size": 1, "output_size": 1}], "snapshots": [0]}
    assert dry_run(planted, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("zoo-builder: Planted cannot train GRU: a planted mode needs one recurrent tensor")
    assert error.count("\n") == 1
    recipe = {**RECIPE, "learning": [BPTT, {**WINDOWED, "window": 6}]}
    assert dry_run(recipe, tmp_path, "--allow_import", "trial_learners") == 2
    expected = "WindowedBPTT cannot train Elman on DelayedRecall: `window` (=6) must be below the task's 6 steps."
    assert expected in capsys.readouterr().err


def test_the_numbers_of_learners_count_against_the_size_of_a_zoo():
    with pytest.raises(ValueError, match="makes 1,200,000 models in 4 cohort"):
        plan_of(BPTT, WINDOWED, models_per_cohort=300_000)


def test_a_learner_of_the_users_own_builds_a_zoo_beside_bptt(tmp_path, capsys):
    path, out = tmp_path / "recipe.yaml", tmp_path / "zoo"
    path.write_text(yaml.safe_dump({**RECIPE, "learning": [BPTT, WINDOWED]}))
    command = ["build", "--config", str(path), "--out", str(out), "--workers", "1", "--json"]
    # Workers that trace no family start in half the time.
    command += ["--method", "torch"]
    assert cli.main([*command, "--allow_import", "trial_learners"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == 16
    assert verify(out) == []
    zoo = open_zoo(out)
    rows = zoo.table.select(["model_id", "learning_config", "score", "step"]).to_pylist()
    for row in rows:
        config = json.loads(row["learning_config"])
        assert ("windowed_bptt" in row["model_id"]) == (config["class"] == "WindowedBPTT")
        assert config.get("window") == (2 if config["class"] == "WindowedBPTT" else None)
        assert row["score"] is not None
    assert sum(json.loads(row["learning_config"])["class"] == "BPTT" for row in rows) == 16
    assert list(zoo.manifest["generator"]["packages"]) == ["trial_learners"]
    assert cli.main(["label", str(out), "--labels", "Rank", "--workers", "1", "--allow_import", "trial_learners"]) == 0
    assert verify(out) == []
