"""Recipes that make no sense: whatever stands in them, a dry run ends with a plan or with one line."""

import copy
import datetime
import itertools
import json
import math
import random
import time
from pathlib import Path

import pytest
import yaml

from weightspace.families.elman import Elman
from zoo_builder import cli
from zoo_builder.planning import estimate, memory
from zoo_builder.planning.plain import parse_yaml
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.planning.spread import parse_spread

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "zoo").glob("*.yaml"))


def nested(kind, levels):
    value = 0
    for _ in range(levels):
        value = [value] if kind is list else {"a": value}
    return value


HOSTILE = [
    *(None, [], {}, "", "x", True, False, -1, 0, 1, 0.5, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(2**31, 2**40, 2**63, 10**30, 10**400, 100_000, 10**9, [[1, 2], [3]], [1], [1, 2], ["x"], [None] * 3),
    *({"a": 1}, {"class": "LSTM"}, {1: 2}, {None: 1}, {"uniform": [0, 1]}, {"uniform": [-1e308, 1e308]}),
    *({"integers": [0, 10**30]}, {"choice": [1, math.nan]}, {"choice": [True]}, {"log_uniform": [1e-300, 1e300]}),
    *(datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), b"bytes", {1, 2}, "0,01", "1e400", -0.0),
    *("y" * 100_000, "\ud800", "a\nb\x1b[2J", nested(list, 300), nested(dict, 300), list(range(10**5))),
]


def leaves(value, path=()):
    """Where something stands in a recipe, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


def laid_out(monkeypatch):
    """An estimate without the measurement, on a machine with 16 GB."""
    monkeypatch.setattr("weightspace.container.memory", lambda: 2**34)
    monkeypatch.setattr(estimate, "_learning_seconds", lambda *asked: 1.0)
    monkeypatch.setattr(estimate, "_label_seconds", lambda *asked: 1.0)


@pytest.fixture
def dry_run(monkeypatch, capsys):
    """What a dry run of some data says: its exit status and the line on stderr."""
    laid_out(monkeypatch)
    monkeypatch.setattr("zoo_builder.planning.recipe.read_yaml", lambda path: data[0])
    data = [None]

    def run(recipe):
        data[0] = recipe
        status = cli.main(["build", "--config", "x.yaml", "--out", "x", "--dry_run", "--json", "--method", "torch"])
        printed = capsys.readouterr()
        if status == 0:
            assert json.loads(printed.out)["models"] > 0
        else:
            assert printed.out == ""
        return status, printed.err

    return run


def cases():
    """Every leaf of every recipe with every hostile value."""
    for path in CONFIGS:
        recipe = {**parse_yaml(path.read_text(), path.name), "models_per_cohort": 30, "splits": {"val": 0.2}}
        for leaf, value in itertools.product(leaves(recipe), HOSTILE):
            yield recipe, leaf, value


def check(run, recipe, leaf, value):
    status, line = run(replaced(recipe, leaf, value))
    assert status in (0, 2), (leaf, value)
    assert line.count("\n") == (1 if status else 0), (leaf, value, line)
    assert len(line) < 1500, (leaf, value, line)


def test_a_leaf_that_makes_no_sense_is_one_line_or_a_plan(dry_run):
    chosen = random.Random(0).sample(list(cases()), 120)
    for recipe, leaf, value in chosen:
        check(dry_run, recipe, leaf, value)


@pytest.mark.slow
def test_every_leaf_that_makes_no_sense_is_one_line_or_a_plan(dry_run):
    for recipe, leaf, value in cases():
        check(dry_run, recipe, leaf, value)


TINY = {
    "families": [{"class": "Elman", "hidden_size": 4}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 8}],
    "learning": {"class": "BPTT", "num_updates": 4},
    "snapshots": [0, 4],
    "models_per_cohort": 10,
    "rollouts": {"sequences": 2},
}
CURRICULUM = {"curriculum": True}
GROWN = [
    ({"models_per_cohort": 10**9}, "`models_per_cohort` (=1,000,000,000) makes 1,000,000,000 models"),
    (
        {"families": [{"class": "Elman", "hidden_size": list(range(1, 50_000))}]},
        "shorten `families[0].hidden_size`, which lists 49,999",
    ),
    (
        {"tasks": [{"class": "Adding", "num_steps": [*range(60)]} | {k: [*range(60)] for k in "abc"}]},
        "cross to 12,960,000 cohorts, but a zoo has 10,000 at most; shorten `tasks[0].num_steps`, which lists 60",
    ),
    ({"families": [{"class": "Elman", "hidden_size": []}]}, "`families[0].hidden_size` is an empty list"),
    ({"families": [{"class": "LSTM", "hidden_size": 4, "num_layers": 10**6}]}, "`num_layers` (=1000000) of LSTM must"),
    ({"families": [{"class": "Elman", "hidden_size": 100_000}]}, "lower `hidden_size` (=100,000)"),
    ({"families": [{"class": "Elman", "hidden_size": 2**40}]}, "lower `hidden_size` (=1,099,511,627,776)"),
    ({"learning": {"class": "BPTT", "num_updates": 4, "batch_size": 2**40}}, "lower `batch_size` (=1,099,511,627,776)"),
    (
        {"learning": {"class": "BPTT", "num_updates": 4, "exams": {"sequences": 2**40}}},
        "lower `exams.sequences` (=1,099,511,627,776)",
    ),
    ({"tasks": [{"class": "DelayedRecall", "num_steps": 2**40}]}, "lower `num_steps` (=1,099,511,627,776)"),
    ({"rollouts": {"sequences": 2**40}}, "lower `rollouts.sequences` (=1,099,511,627,776)"),
    ({"models_per_cohort": 500_000, "snapshots": [*range(100)]}, "`snapshots` (=100 of them) make 50,000,000 rows"),
]
MISTAKEN = [
    ({"families": [{"class": None}]}, "`families[0].class` must be the name of one class, found None"),
    ({"families": [{"class": 3}]}, "`families[0].class` must be the name of one class, found 3"),
    ({"families": [{"class": ["Elman", "GRU"]}]}, "`families[0].class` must be the name of one class, found ['Elman'"),
    ({"learning": {"class": "BPTT", "learning_rate": "0,01"}}, "`learning_rate` of BPTT is '0,01'; give a number"),
    ({"learning": {"class": "BPTT", "learning_rate": 0, 1: None}}, "a decimal is written with a point, as 0.01"),
    ({"learning": {"class": "BPTT", "schedule": 0}}, "`schedule` (=0) of BPTT must be of type Schedule or null"),
    ({"learning": {"class": "BPTT", "num_updates": math.inf}}, "`learning.num_updates` (=inf) must be a finite number"),
    ({"labels": ["score"]}, "'score' is a column of the label Performance"),
    ({"seed": 10**30}, "`seed` (=10000"),
    ({"title": datetime.date(2020, 1, 1)}, "is a date; write a number, text in quotes"),
    ({"snapshots": nested(list, 5000)}, "is nested too deeply, more than 8 levels"),
    ({"splits": []}, "`splits` must be a mapping with keys"),
    ({"splits": {"out_of_distribution": {"largest_size": 1}}}, "`splits.out_of_distribution.largest_size` (=1) must"),
    (
        {"families": [{"class": "LowRankSparse", "cell": "Elman", "hidden_size": 4, "rank": 5}]},
        "`hidden_size` (=4) of LowRankSparse must be at least 5: no matrix has a `rank` above its size",
    ),
    (
        {"families": [{"class": "StableReparam", "hidden_size": 4, "time_step": 0.9}]},
        "`time_step` (=0.9) of StableReparam must be above 0 and at most 0.5",
    ),
    (
        {"families": [{"class": "LTC", "hidden_size": 4, "wiring": "ncp", "sparsity": 0.5}]},
        "`hidden_size` (=4) of LTC must be at least 5: the wiring",
    ),
    (
        {"tasks": [{"class": "Adding"}], "learning": {"class": "BPTT", "num_updates": 4, "exams": CURRICULUM}},
        "Adding declares no `difficulty`",
    ),
    ({"tasks": [{"class": "NParity", "max_n": 4, "n": 3, "heads": "two"}]}, "`heads` (='two') of NParity must be one"),
]


@pytest.mark.parametrize(("changes", "words"), GROWN + MISTAKEN, ids=[words for _, words in GROWN + MISTAKEN])
def test_what_cannot_be_is_refused_with_the_field(changes, words, dry_run):
    before = time.process_time()
    status, line = dry_run({**copy.deepcopy(TINY), **changes})
    assert status == 2
    assert words in line
    assert line.count("\n") == 1
    assert time.process_time() - before < 5


def test_a_text_with_unknown_characters_is_refused_before_anything_learns(dry_run, tmp_path):
    (tmp_path / "text.txt").write_text("a line\nSoßen für €5\n" * 20)
    status, line = dry_run({**TINY, "tasks": [{"class": "CharLanguage", "path": str(tmp_path / "text.txt")}]})
    assert status == 2
    assert "has 3 unknown characters ('ß', 'ü', '€'), the first in line 2; known are" in line
    assert line.count("\n") == 1


def test_the_recipe_they_were_made_from_has_a_plan(dry_run):
    status, line = dry_run(TINY)
    assert (status, line) == (0, ""), line


TEXTS = [
    ("seed: 1\ntitle: x\nseed: 2", "r.yaml cannot be read: the key 'seed' stands twice in one mapping, in line 3"),
    ("families: [{class: Elman, hidden_size: 3, hidden_size: 4}]", "the key 'hidden_size' stands twice"),
    ("[" * 500, "r.yaml is nested too deeply"),
    ("{a: " * 500, "r.yaml is nested too deeply"),
    ("seed: " + "9" * 5_000, "r.yaml cannot be read: Exceeds the limit"),
    ("seed: 2020-13-45", "r.yaml cannot be read: month must be in 1..12"),
    ("seed: !!int ''", "r.yaml cannot be read"),
    ("seed: !!timestamp x", "r.yaml cannot be read"),
    ("seed: !!bool x", "r.yaml cannot be read"),
    ("a: &a {b: 1}\nc: {<<: *a}", "The recipe has no key 'a'"),
    ("&a [*a]", "is nested too deeply, more than 8 levels"),
    ("families: [{class: Elman, hidden_size: 2, ? [1] : 3}]", "r.yaml is not YAML"),
    ("title: \x00", "r.yaml is not YAML"),
    ("---\na: 1\n---\nb: 1", "r.yaml is not YAML"),
    ("x" * 300_000, "has 300,000 bytes, and no recipe more than 200,000"),
]


@pytest.mark.parametrize(("text", "words"), TEXTS, ids=[words for _, words in TEXTS])
def test_a_file_that_is_no_recipe_is_one_line(text, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text)
    assert cli.main(["build", "--config", "r.yaml", "--out", "zoo", "--dry_run"]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
    assert not Path("zoo").exists()


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"title: \xff")
    with pytest.raises(ValueError, match="no text in UTF-8: invalid start byte"):
        read_recipe(tmp_path / "r.yaml")


def test_what_yaml_repeats_by_reference_is_not_counted_into_memory(tmp_path):
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 9)}]" for n in range(7)]
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="holds more than 100,000 values"):
        read_recipe(tmp_path / "r.yaml")


def test_numbers_of_workers_that_make_no_sense_are_refused_by_a_dry_run_too(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(TINY))
    asked = ["build", "--config", str(tmp_path / "r.yaml"), "--out", "zoo", "--dry_run", "--workers"]
    for workers in ("0", "-3"):
        assert cli.main([*asked, workers]) == 2
        assert f"`workers` (={workers}) must be at least 1." in capsys.readouterr().err


def test_memory_that_is_not_there_names_the_cohort_and_the_field(monkeypatch):
    plan = make_plan(read_recipe({**TINY, "labels": []}))
    (cohort,) = plan.cohorts

    def init(family, generator):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Elman, "init", init)
    with pytest.raises(ValueError, match=r"not enough memory .* 'elman-hidden4-.*lower `shard_size` \(=64\)"):
        estimate.estimate(plan, 1)
    with pytest.raises(RuntimeError, match=r"^other$"), memory.memory_named(plan, cohort):
        raise RuntimeError("other")


def test_what_a_shard_takes_at_the_least_is_no_more_than_it_takes():
    plan = make_plan(read_recipe(TINY))
    weights = 4 * (4 * 4 + 4 + 4 + 2 * 4 + 2)
    batch = 4 * 8 * 2
    assert memory.least_bytes(plan, plan.cohorts[0]) == 10 * (4 * weights + 16 * batch)
    for path in CONFIGS:
        memory.check_memory(make_plan(read_recipe(path)), 2**30)


def test_numbers_of_a_spread_are_numbers():
    for value in ({"choice": [True]}, {"uniform": ["0", 1]}, {"uniform": [0, 10**400]}, {"choice": [math.nan]}, 1e301):
        with pytest.raises(ValueError, match="takes numbers of at most 1e"):
            parse_spread("`x`", value)
