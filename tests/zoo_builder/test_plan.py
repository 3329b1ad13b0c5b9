"""From a recipe to cohorts, models, splits and shards; and what a recipe is refused for."""

import copy
import math
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from weightspace.rollout import Streams
from zoo_builder.planning.plain import parse_yaml
from zoo_builder.planning.plan import hidden_size, make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.planning.spread import parse_spread
from zoo_builder.table import out_of_task

CONFIGS = Path(__file__).parents[2] / "configs" / "zoo"

RECIPE = {
    "families": [
        {"class": "Elman", "hidden_size": [3, 5], "nonlinearity": ["tanh", "relu"]},
        {"class": "GRU", "hidden_size": 3},
    ],
    "tasks": [
        {"class": "DelayedRecall", "num_steps": 8, "delay": {"integers": [1, 6]}},
        {"class": "TiledDigits", "tile_size": 4, "angle": {"uniform": [0, 180]}},
    ],
    "learning": {"class": "BPTT", "num_updates": 5, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "snapshots": [0, 5],
    "models_per_cohort": 12,
    "shard_size": 5,
    "labels": ["Performance"],
}


def plan_of(**changes):
    return make_plan(read_recipe({**copy.deepcopy(RECIPE), **changes}))


def test_every_family_configuration_meets_every_task():
    plan = plan_of()
    found = Counter((type(c.family).__name__, type(c.task).__name__) for c in plan.cohorts)
    assert found == {(f, t): n for f, n in (("Elman", 4), ("GRU", 1)) for t in ("DelayedRecall", "TiledDigits")}
    for cohort in plan.cohorts:
        assert cohort.family.input_size == cohort.task.input_size
        assert cohort.family.output_size == cohort.task.output_size
    assert plan.num_models == 120


def test_shards_hold_every_model_once_and_one_cohort_each():
    plan = plan_of()
    assert [shard.index for shard in plan.shards] == list(range(30))
    assert [m for shard in plan.shards for m in shard.model_ids] == [m for c in plan.cohorts for m in c.model_ids]
    assert max(shard.last - shard.first for shard in plan.shards) == 5


def test_model_names_are_unique_and_do_not_depend_on_other_cohorts():
    whole = {m for c in plan_of().cohorts for m in c.model_ids}
    assert len(whole) == 120
    assert {m for c in plan_of(families=RECIPE["families"][1:]).cohorts for m in c.model_ids} < whole
    assert any(m.startswith("elman-hidden3-relu-delayed_recall-") and m.endswith("-0011") for m in whole)


def three_tasks(count):
    tasks = [*RECIPE["tasks"], {"class": "Adding", "num_steps": [6, 8]}]
    families = [{"class": "Elman", "hidden_size": [2, 3, 4, 5]}, {"class": "GRU", "hidden_size": [2, 3, 4, 5]}]
    return {"families": families, "tasks": tasks, "tasks_per_family": count}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_families_take_turns_with_a_few_of_the_tasks(count):
    recipe = three_tasks(count)
    plan, whole = plan_of(**recipe), plan_of(**{**recipe, "tasks_per_family": 4})
    assert len(whole.cohorts) == 32
    assert {cohort.name for cohort in plan.cohorts} <= {cohort.name for cohort in whole.cohorts}
    sizes = Counter((type(cohort.family).__name__, hidden_size(cohort.family)) for cohort in plan.cohorts)
    assert (len(sizes), set(sizes.values())) == (8, {count})
    assert set(Counter(str(cohort.task) for cohort in plan.cohorts).values()) == {2 * count}
    # Four sizes of one family have all four tasks between them.
    assert len({str(cohort.task) for cohort in plan.cohorts if type(cohort.family).__name__ == "GRU"}) == 4
    turned = {key: recipe[key][::-1] for key in ("families", "tasks")}
    assert plan_of(**{**recipe, **turned}).cohorts == plan.cohorts


def test_more_tasks_per_family_than_there_are_and_none_at_all_are_refused():
    with pytest.raises(ValueError, match=r"`tasks_per_family` \(=5\) must be at most the number of tasks, 4"):
        plan_of(**three_tasks(5))
    with pytest.raises(ValueError, match=r"`tasks_per_family` \(=0\) must be a whole number, at least 1"):
        plan_of(**three_tasks(0))


def test_the_order_of_families_and_tasks_has_no_effect():
    assert plan_of(families=RECIPE["families"][::-1], tasks=RECIPE["tasks"][::-1]).cohorts == plan_of().cohorts


def splits_of(plan):
    """Every split column of every model, with the task's own values, by the model's name."""
    told = {}
    share = plan.recipe["splits"]["out_of_distribution"]["task_share"]
    for cohort in plan.cohorts:
        values = cohort.members(plan.seed, cohort.model_ids).values
        out = out_of_task(cohort, values, share, len(cohort.splits))
        own = zip(*(tensor.tolist() for tensor in values.values()), strict=True) if values else [()] * len(out)
        rows = zip(cohort.model_ids, cohort.splits, out, own, strict=True)
        told |= {m: (split, task, value, cohort.split_size, cohort.fold_family) for m, split, task, value in rows}
    return told


def shuffled(value, generator):
    """A recipe's lists of entries, and of values to cross or choose from, in another order."""
    if isinstance(value, dict):
        ordered = ("integers", "uniform", "log_uniform")
        return {key: item if key in ordered else shuffled(item, generator) for key, item in value.items()}
    return (
        generator.sample([shuffled(item, generator) for item in value], len(value))
        if isinstance(value, list)
        else value
    )


OTHER_TASKS = [
    {"class": "FormalLanguage", "max_n": [4, 5, 6], "mb": {"choice": [-1, 0, 2]}, "md": {"integers": [0, 2]}},
    {"class": "DelayedRecall", "num_steps": [8, 9], "delay": {"integers": [1, 6]}},
    {"class": "TiledDigits", "tile_size": 4, "angle": {"uniform": [0, 180]}},
    {"class": "Adding", "num_steps": [6, 8, 10]},
]


@pytest.mark.parametrize("name", ["formal-languages-laptop", "quickstart"])
def test_every_split_is_the_same_under_a_shuffled_list_of_tasks(name):
    recipe = read_recipe(CONFIGS / f"{name}.yaml")
    recipe["tasks"] = [*recipe["tasks"], *OTHER_TASKS]
    expected = splits_of(make_plan(recipe))
    columns = list(zip(*expected.values(), strict=True))
    assert set(columns[0]) == {"train", "val", "test"}
    assert set(columns[1]) == {"in", "out"}
    for seed in range(4):
        parts = {key: shuffled(recipe[key], random.Random(seed)) for key in ("tasks", "families")}
        assert parts["tasks"] != recipe["tasks"]
        assert splits_of(make_plan({**recipe, **parts})) == expected


def test_more_models_leave_the_draws_of_the_others_as_they_are():
    small, large = plan_of().cohorts[0], plan_of(models_per_cohort=40).cohorts[0]
    few, many = (c.members(0, c.model_ids).settings["learning_rate"] for c in (small, large))
    assert torch.equal(few, many[:12])
    assert len(set(many.tolist())) == 40
    other_seed = small.members(1, small.model_ids).settings["learning_rate"]
    assert not set(other_seed.tolist()) & set(few.tolist())


def test_splits_are_exact_overall_and_even_over_cohorts():
    plan = plan_of(splits={"test": 0.2, "val": 0.1})
    counts = [Counter(cohort.splits) for cohort in plan.cohorts]
    assert sum(c["test"] for c in counts) == 24
    assert sum(c["val"] for c in counts) == 12
    assert {c["test"] for c in counts} == {2, 3}
    assert {c["val"] for c in counts} == {1, 2}
    assert plan.cohorts == plan_of(splits={"test": 24, "val": 12}).cohorts


def test_splits_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ValueError, match="leave no training models in a cohort of 12"):
        plan_of(splits={"test": 100, "val": 20})


def test_the_largest_size_and_the_extreme_parameters_are_out_of_distribution():
    plan = plan_of()
    assert {(c.family.hidden_size, c.split_size) for c in plan.cohorts} == {(3, "in"), (5, "out")}
    off = {"out_of_distribution": {"largest_size": False}}
    assert {c.split_size for c in plan_of(splits=off).cohorts} == {"in"}
    digits = next(c for c in plan.cohorts if type(c.task).__name__ == "TiledDigits")
    values = {"angle": torch.tensor([0.0, 152.9, 153.1, 180.0], dtype=torch.float64)}
    assert out_of_task(digits, values, 0.15, 4) == ["in", "in", "out", "out"]
    recall = next(c for c in plan.cohorts if type(c.task).__name__ == "DelayedRecall")
    assert out_of_task(recall, {"delay": torch.arange(1.0, 7.0)}, 0.15, 6) == ["in"] * 5 + ["out"]


def test_folds_are_places_among_the_sorted_classes():
    assert {(type(c.family).__name__, c.fold_family) for c in plan_of().cohorts} == {("Elman", 0), ("GRU", 1)}


SPREADS = [
    ({"uniform": [2, 6]}, 4, 16 / 12),
    ({"log_uniform": [1, math.e]}, math.e - 1, (math.e**2 - 1) / 2 - (math.e - 1) ** 2),
    ({"integers": [1, 4]}, 2.5, 15 / 12),
    ({"choice": [1, 5]}, 3, 4),
    (7, 7, 0),
]


@pytest.mark.parametrize(("value", "mean", "variance"), SPREADS)
def test_spreads_have_the_moments_of_their_distribution(value, mean, variance):
    spread = parse_spread("x", value)
    drawn = spread.draw(Streams(0, [f"m{i}" for i in range(4000)], "plan/x"))
    low, high = spread.extremes
    assert drawn.dtype == torch.float64
    assert low <= drawn.min() <= drawn.max() <= high
    assert drawn.mean().item() == pytest.approx(mean, abs=0.06)
    assert drawn.var().item() == pytest.approx(variance, abs=0.08)


def test_integers_reach_both_ends():
    drawn = parse_spread("x", {"integers": [1, 4]}).draw(Streams(0, [f"m{i}" for i in range(200)], "x"))
    assert set(drawn.tolist()) == {1, 2, 3, 4}


BAD = [
    ({"familes": []}, r"no key 'familes'.*Did you mean 'families'"),
    ({"families": [{"class": "Ellman", "hidden_size": 3}]}, r"No family is called 'Ellman'.*'Elman'"),
    ({"families": [{"class": "Elman", "hiden_size": 3}]}, r"has no option 'hiden_size'.*'hidden_size'"),
    ({"families": [{"class": "Elman", "hidden_size": 3, "nonlinearty": "tanh"}]}, r"Did you mean 'nonlinearity'"),
    ({"families": [{"class": "Elman", "hidden_size": 0}]}, r"`hidden_size` \(=0\) of Elman must be at least 1"),
    ({"families": [{"class": "Elman", "hidden_size": "8"}]}, r"`hidden_size` \(='8'\) of Elman must be of type int"),
    ({"families": [{"class": "Elman", "hidden_size": 3, "nonlinearity": "sin"}]}, r"must be one of \['tanh', 'relu'\]"),
    ({"families": [{"class": "Elman", "hidden_size": 3, "input_size": 7}]}, r"does not fit .*; leave `input_size` out"),
    ({"families": [{"class": "GRU", "hidden_size": [3, 3]}]}, r"gives the cohort 'gru-hidden3-.*' twice"),
    ({"families": []}, r"`families` is empty"),
    ({"families": {"class": "GRU"}}, r"`families` must be a list"),
    ({"tasks": [{"class": "DelayedRecal"}]}, r"No task is called 'DelayedRecal'.*'DelayedRecall'"),
    ({"tasks": [{"class": "DelayedRecall", "delai": 3}]}, r"no option 'delai'.*'delay'"),
    ({"tasks": [{"class": "DelayedRecall", "num_steps": 5, "delay": {"integers": [1, 5]}}]}, r"`delay` \(=5\)"),
    ({"tasks": [{"class": "DelayedRecall", "num_steps": {"uniform": [1, 5]}}]}, r"cannot differ .* \['delay'\] can"),
    (
        {"tasks": [{"class": "DelayedRecall", "delay": {"unifrom": [1, 5]}}]},
        r"No spread of .* is called 'unifrom'.*'uniform'",
    ),
    ({"tasks": [{"class": "DelayedRecall", "delay": {"integers": [5, 1]}}]}, r"low at most high"),
    ({"tasks": [{"class": "DelayedRecall", "delay": {"integers": [1.5, 2]}}]}, r"whole numbers"),
    ({"tasks": []}, r"BPTT needs a task"),
    ({"learning": {"class": "BTTP"}}, r"No learner is called 'BTTP'.*'BPTT'"),
    ({"learning": {"class": "BPTT", "num_updates": 5, "learning_rate": -1}}, r"`learning_rate` \(=-1\)"),
    ({"learning": {"class": "BPTT", "num_updates": 5, "learning_rate": {"log_uniform": [0, 1]}}}, r"bounds above 0"),
    ({"learning": {"class": "Planted"}}, r"Planted learns no task; remove `tasks`"),
    ({"learning": {"class": "BPTT", "num_updates": 4}}, r"Snapshot 5 comes after the last of 4 updates"),
    ({"snapshots": []}, r"`snapshots` must be a list"),
    ({"snapshots": [-1]}, r"0 or more"),
    ({"shard_size": {"cuda": 9}}, r"`shard_size` has no number for cpu; add `cpu`"),
    ({"shard_size": {"cpu": 9, "gpu": 9}}, r"`shard_size` has no key 'gpu'"),
    ({"shard_size": {"cpu": 0, "cuda": 9}}, r"`shard_size` \(=0\)"),
    ({"models_per_cohort": 0}, r"`models_per_cohort` \(=0\)"),
    ({"labels": ["Rnk"]}, r"No label is called 'Rnk'.*'Rank'"),
    ({"splits": {"tests": 0.1}}, r"no key 'tests'.*'test'"),
    ({"splits": {"test": 1.5}}, r"a share below 1 or a whole number"),
    ({"rollouts": {"sequence": 3}}, r"'sequences'"),
    ({"seed": "0"}, r"`seed` \(='0'\)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_a_recipe_that_makes_no_sense_is_refused_with_the_way_out(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**changes)


def test_what_a_recipe_lacks_is_named():
    with pytest.raises(ValueError, match="lacks `learning`, `snapshots`"):
        read_recipe({"families": RECIPE["families"], "models_per_cohort": 3})


def test_shards_may_differ_in_size_between_devices():
    recipe = {**RECIPE, "shard_size": {"cpu": 5, "cuda": 12}}
    assert [read_recipe(recipe, device=device)["shard_size"] for device in ("cpu", "cuda")] == [5, 12]
    # A recipe that was read reads the same again.
    assert read_recipe(read_recipe(recipe)) == read_recipe(recipe)


def test_the_seed_option_replaces_the_recipes_seed():
    assert read_recipe(RECIPE, seed=7)["seed"] == 7


def test_numbers_without_a_point_before_the_exponent_are_numbers():
    found = parse_yaml("[1e-3, -2E5, .5e1, 1.0e-3, '1e-3', 1e]", "it")
    assert found == [0.001, -200000.0, 5.0, 0.001, "1e-3", "1e"]


def test_files_that_are_no_recipe_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no recipe"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"a.yaml is not YAML"):
        read_recipe(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match=r"b.yaml is not YAML"):
        read_recipe(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("- 1")
    with pytest.raises(ValueError, match=r"The recipe must be a mapping"):
        read_recipe(tmp_path / "c.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_have_a_plan(path):
    assert make_plan(read_recipe(path)).num_models > 0


def test_a_hundred_thousand_models_are_planned_in_seconds():
    start = time.process_time()
    plan = make_plan(read_recipe(CONFIGS / "large.yaml"))
    assert plan.num_models == 100_000
    assert sum(shard.last - shard.first for shard in plan.shards) == 100_000
    assert time.process_time() - start < 10
    assert len({type(cohort.family) for cohort in plan.cohorts}) == 4
    assert len({type(cohort.task) for cohort in plan.cohorts}) == 5
    assert len({hidden_size(cohort.family) for cohort in plan.cohorts}) == 4


def test_the_planted_zoo_has_2000_training_and_500_test_models():
    plan = make_plan(read_recipe(CONFIGS / "planted-eigenvalue.yaml"))
    assert Counter(s for c in plan.cohorts for s in c.splits) == {"train": 2000, "test": 500, "val": 250}


def test_the_quickstart_has_a_thousand_models_of_every_family_on_every_task():
    plan = make_plan(read_recipe(CONFIGS / "quickstart.yaml"))
    assert plan.num_models >= 1000
    assert len(plan.snapshots) == 3
    assert {type(c.family).__name__ for c in plan.cohorts} == {"Elman", "GRU", "CPRNN"}
    assert {c.family.hidden_size for c in plan.cohorts} == {8, 12, 16}
    assert max(c.task.num_steps for c in plan.cohorts) <= 24


@pytest.mark.parametrize(("name", "num_steps"), [("formal-languages", 41), ("tiled-digits", 16)])
def test_the_two_zoos_of_a_thousand_have_a_preset_for_a_laptop(name, num_steps):
    for preset, models, size, snapshots in (("", 1000, 32, 9), ("-laptop", 256, 16, 4)):
        plan = make_plan(read_recipe(CONFIGS / f"{name}{preset}.yaml"))
        (cohort,) = plan.cohorts
        assert (plan.num_models, len(plan.snapshots)) == (models, snapshots)
        assert (type(cohort.family).__name__, cohort.family.hidden_size, cohort.family.num_layers) == ("LSTM", size, 2)
        assert cohort.task.num_steps == num_steps
        share = plan.recipe["splits"]["out_of_distribution"]["task_share"]
        values = cohort.members(plan.seed, cohort.model_ids).values
        out = torch.tensor([s == "out" for s in out_of_task(cohort, values, share, models)])
        assert 0.08 < out.double().mean() < 0.2
        extreme = values["angle"] if "angle" in values else -sum(values[k].abs() for k in ("mb", "mc", "md"))
        assert extreme[out].min() > extreme[~out].max()
