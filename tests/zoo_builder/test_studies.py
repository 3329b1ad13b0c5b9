"""Studies: found by name, run by command, judged by their gates; the zoo that one finished is not built again."""

import inspect
import json
import math
import subprocess
import sys

import pytest

from weightspace.components import plugins
from zoo_builder import studies
from zoo_builder.build import build
from zoo_builder.cli import main
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.studies import Gate, Measured
from zoo_builder.studies import run as running
from zoo_builder.studies.run import judged, run_study
from zoo_builder.workers import in_process, making

TRIAL = "tests.zoo_builder.trial_study"
KEYS = {"study", "paper", "passed", "gates", "cpu_seconds", "reported"}


@pytest.fixture(autouse=True)
def only_ours(monkeypatch):
    """Allowances of a command last as long as its process: taken back here, because other tests share it."""
    monkeypatch.setattr(plugins, "_allowed", {})


def call(*arguments):
    return main([*map(str, arguments), "--allow_import", TRIAL])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_study_whose_gates_pass_leaves_result_and_figure(tmp_path, capsys):
    assert call("study", "run", "Decaying", "--out", tmp_path) == 0
    assert "Decaying: passed" in capsys.readouterr().out
    result = json.loads((tmp_path / "Decaying/result.json").read_text())
    assert set(result) == KEYS
    assert result["study"] == "Decaying"
    assert result["paper"] == "Nobody: Memories fade, Journal of Trials 2020"
    assert result["passed"] is True
    assert result["cpu_seconds"] > 0
    (gate,) = result["gates"]
    assert 0 < gate.pop("value") < 10
    assert gate == {"name": "longest memory", "threshold": 10.0, "comparison": "<", "passed": True}
    assert (tmp_path / "Decaying/figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_gate_that_fails_ends_with_1_and_a_value_that_is_no_number_is_null(tmp_path, capsys):
    assert call("study", "run", "Growing", "Decaying", "--out", tmp_path, "--json") == 1
    results = json.loads(capsys.readouterr().out)
    assert [result["passed"] for result in results] == [False, True]
    first, absent = results[0]["gates"]
    assert not first["passed"]
    assert first["value"] < 10
    assert absent == {"name": "absent", "threshold": 0.0, "comparison": ">", "value": None, "passed": False}
    assert json.loads((tmp_path / "Growing/result.json").read_text()) == results[0]


def test_a_finished_zoo_is_read_and_not_built_again(tmp_path, monkeypatch, capsys):
    assert call("study", "run", "Decaying", "--out", tmp_path) == 0
    before = contents(tmp_path / "Decaying/planted")
    ledger = json.loads((tmp_path / "Decaying/cpu_seconds.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr("zoo_builder.build._make", lambda *arguments: pytest.fail("a zoo was built again"))
        assert call("study", "run", "Decaying", "--out", tmp_path) == 0
    assert contents(tmp_path / "Decaying/planted") == before
    # The seconds of the first run are not forgotten.
    assert json.loads((tmp_path / "Decaying/cpu_seconds.json").read_text())["planted"] >= ledger["planted"]
    assert json.loads((tmp_path / "Decaying/result.json").read_text())["cpu_seconds"] >= ledger["planted"]


def test_a_run_that_was_stopped_goes_on_where_it_was_and_counts_all_seconds(tmp_path, monkeypatch):
    plugins.allow(TRIAL)
    study = studies.load("Decaying")
    write_shard, made, most = making.write_shard, [], 1

    def counted(out, index, *arguments):
        if len(made) == most:
            raise KeyboardInterrupt
        made.append(index)
        return write_shard(out, index, *arguments)

    clock = iter([0.0, 5.0, 5.0, 7.0, 7.0, 8.0])
    monkeypatch.setattr(running, "_cpu_seconds", lambda: next(clock))
    monkeypatch.setattr(making, "write_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path)
    assert made == [0]
    most = 2
    result = run_study(study, tmp_path)
    assert made == [0, 1]
    assert result["cpu_seconds"] == 5 + 2 + 1
    most = 99
    build(study.recipes["planted"], tmp_path / "whole", engine=in_process.run_shards)
    assert contents(tmp_path / "whole") == contents(tmp_path / "Decaying/planted")


def test_the_seed_replaces_that_of_the_recipes_and_workers_change_nothing(tmp_path):
    assert call("study", "run", "Decaying", "--out", tmp_path / "a", "--seed", 3) == 0
    assert call("study", "run", "Decaying", "--out", tmp_path / "b", "--seed", 3, "--workers", 2) == 0
    assert contents(tmp_path / "a/Decaying/planted") == contents(tmp_path / "b/Decaying/planted")
    zoo = json.loads((tmp_path / "a/Decaying/planted/zoo.json").read_text())
    assert zoo["recipe"]["seed"] == 3


def test_another_seed_in_the_same_folder_is_refused(tmp_path, capsys):
    assert call("study", "run", "Decaying", "--out", tmp_path) == 0
    assert call("study", "run", "Decaying", "--out", tmp_path, "--seed", 3) == 2
    assert "seed was 0, now 3" in capsys.readouterr().err


REFUSED = [
    (["Decayin"], r"No study is called 'Decayin'; there are .* Did you mean 'Decaying'?"),
    ([], "Give names of studies or `--all`, and not both; there are ['ActorCriticMemory', 'CurseOfMemory', 'Decaying'"),
    (["Decaying", "--all"], "Give names of studies or `--all`, and not both"),
    (["Decaying", "--workers", "0"], "`workers` (=0) must be at least 1."),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_ends_with_2_and_one_line_before_anything_is_built(arguments, message, tmp_path, capsys):
    assert call("study", "run", *arguments, "--out", tmp_path) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    for part in message.split(" .* "):
        assert part in printed.err
    assert list(tmp_path.iterdir()) == []


def test_all_runs_every_study_there_is(tmp_path, monkeypatch):
    plugins.allow(TRIAL)
    found = {name: kind for name, kind in studies.available().items() if kind.__module__ == TRIAL}
    monkeypatch.setattr(studies, "available", lambda: found)
    assert call("study", "run", "--all", "--out", tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Decaying", "Growing"]


def test_list_shows_studies_with_paper_and_gates(capsys):
    assert call("list", "studies", "--json") == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert {"Decaying", "Growing", "Timescales"} <= set(names)
    assert call("list", "studies", "Decaying", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["paper"] == "Nobody: Memories fade, Journal of Trials 2020"
    assert row["gates"] == [{"name": "longest memory", "comparison": "<", "threshold": 10.0, "unit": "eigenvalue"}]
    assert call("list", "studies", "Decaying") == 0
    text = capsys.readouterr().out
    assert "Nobody: Memories fade" in text
    assert "gate: longest memory < 10 eigenvalue" in text
    assert call("list", "studies", "Decayed") == 2
    assert "Did you mean 'Decaying'?" in capsys.readouterr().err
    assert call("list", "families", "gru") == 2
    assert "Did you mean 'GRU'?" in capsys.readouterr().err


def test_help_teaches_with_an_example_without_loading_torch():
    for command in (["study"], ["study", "run"]):
        code = f"import sys; sys.argv[1:] = {[*command, '--help']}; from zoo_builder.cli import main\n"
        code += "try:\n main()\nexcept SystemExit as e:\n assert not e.code\nassert 'torch' not in sys.modules"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "Example: zoo-builder study run Timescales --out" in ended.stdout


@pytest.mark.parametrize(
    ("comparison", "passing"), [(">", {1.5}), (">=", {1.0, 1.5}), ("<", {0.5}), ("<=", {0.5, 1.0})]
)
def test_a_gate_compares_as_it_says(comparison, passing):
    gate = Gate(name="x", comparison=comparison, threshold=1.0, unit="")
    assert {value for value in (0.5, 1.0, 1.5, math.nan) if gate.passes(value)} == passing


def test_values_must_be_those_of_the_gates():
    plugins.allow(TRIAL)
    for values in ({}, {"longest memory": 0.0, "another": 1.0}):
        with pytest.raises(ValueError, match="but its gates are"):
            judged(studies.load("Decaying"), Measured(values, {}))
    (gate,) = judged(studies.load("Decaying"), Measured({"longest memory": -math.inf}, {}))
    assert (gate["value"], gate["passed"]) == (None, False)


@pytest.mark.parametrize("name", sorted(studies.available()))
def test_every_study_declares_paper_gates_and_zoos_that_can_be_planned(name):
    study = studies.load(name)
    assert any(character.isdigit() for character in study.paper)
    assert len({gate.name for gate in study.gates}) == len(study.gates) > 0
    assert all(math.isfinite(gate.threshold) and gate.unit for gate in study.gates)
    assert len((inspect.getdoc(type(study)) or "").splitlines()) > 1
    assert study.recipes
    for recipe in study.recipes.values():
        assert make_plan(read_recipe(recipe)).num_models > 0
