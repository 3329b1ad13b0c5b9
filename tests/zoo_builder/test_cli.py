"""The command `zoo-builder`: what it prints, where, and with which exit status."""

import json
import resource
import subprocess
import sys

import pytest
import yaml

from weightspace.store import open_zoo
from zoo_builder.cli import main

RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 2, "input_size": 1, "output_size": 1}],
    "learning": {"class": "Planted"},
    "snapshots": [0],
    "models_per_cohort": 10,
    "labels": ["MemoryMode"],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def zoo(recipe):
    path = recipe.parent / "zoo"
    assert main(["build", "--config", str(recipe), "--out", str(path), "--workers", "1", "--seed", "4"]) == 0
    return path


def test_help_answers_in_under_a_second_with_an_example():
    for command in ([], ["build"], ["verify"], ["info"], ["list"], ["bench"]):
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = f"import sys; sys.argv[1:] = {[*command, '--help']}; from zoo_builder.cli import main; main()"
        ended = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
        )
        assert "Example: zoo-builder" in ended.stdout
        assert "| torch\n" not in ended.stderr
        assert "pyarrow" not in ended.stderr
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert end.ru_utime - start.ru_utime + end.ru_stime - start.ru_stime < 1


def test_build_prints_one_document_and_a_second_build_does_nothing(zoo, recipe, capsys):
    assert main(["build", "--config", str(recipe), "--out", str(zoo), "--seed", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {
        "path": str(zoo),
        "models": 10,
        "rows": 10,
        "shards": 1,
        "built": 0,
        "missing": 0,
        "fingerprint": open_zoo(zoo).fingerprint,
    }


def test_a_dry_run_builds_nothing(recipe, tmp_path, capsys):
    assert main(["build", "--config", str(recipe), "--out", str(tmp_path / "no"), "--dry_run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == 10
    assert main(["build", "--config", str(recipe), "--out", str(tmp_path / "no"), "--dry_run"]) == 0
    assert "1 cohorts, 10 models, 10 rows" in capsys.readouterr().out
    assert not (tmp_path / "no").exists()


def test_verify_ends_with_0_on_an_intact_zoo_and_1_on_a_damaged_one(zoo, tmp_path, capsys):
    assert main(["verify", str(zoo)]) == 0
    assert "every byte is as promised" in capsys.readouterr().out
    damaged = tmp_path / "zoo"
    subprocess.run(["cp", "-r", str(zoo), str(damaged)], check=True)
    (damaged / "models.parquet").write_bytes(b"x")
    assert main(["verify", str(damaged), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [fault["path"] for fault in printed["faults"]] == ["models.parquet"]
    assert main(["verify", str(damaged)]) == 1
    assert "'models.parquet': has 1 bytes" in capsys.readouterr().out
    assert main(["verify", str(damaged), "--repair"]) == 0


def test_info_counts_models(zoo, capsys):
    assert main(["info", str(zoo), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["split"] == {"test": 2, "train": 7, "val": 1}
    assert main(["info", str(zoo)]) == 0
    assert "rows by split: test 2, train 7, val 1" in capsys.readouterr().out


def test_list_names_what_there_is(capsys):
    for kind, name in (("families", "GRU"), ("tasks", "TiledDigits"), ("labels", "Rank"), ("learners", "BPTT")):
        assert main(["list", kind, "--json"]) == 0
        assert name in {row["name"] for row in json.loads(capsys.readouterr().out)}
        assert main(["list", kind]) == 0
        assert f"{name}: " in capsys.readouterr().out
    assert main(["list", "studies", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


BAD_INPUT = [
    (["verify", "/no/such/folder"], "/no/such/folder is not a folder"),
    (["info", "/tmp"], "/tmp has no zoo.json: not a zoo"),
    (["build", "--config", "/no/recipe.yaml", "--out", "x"], "There is no recipe /no/recipe.yaml"),
    (["build", "--config", "x", "--out", "x", "--shard", "4/3"], "4/3 is no share: give I/N with I from 1 to N"),
    (["build", "--config", "x", "--out", "x", "--shard", "0/3"], "0/3 is no share"),
    (["build", "--config", "x", "--out", "x", "--shard=-1/3"], "`shard` is '-1/3'; give I/N with whole numbers"),
    (["build", "--config", "x", "--out", "x", "--shard", "2"], "`shard` is '2'; give I/N"),
    (["build", "--config", "x", "--out", "x", "--shard", "a/b"], "`shard` is 'a/b'; give I/N"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT)
def test_bad_input_ends_with_2_and_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"zoo-builder: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    "arguments", [["build", "--config", "x", "--out", "x"], ["label", "x", "--labels", "Rank"]], ids=["build", "label"]
)
def test_a_system_without_locks_is_told_so_in_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert "on POSIX systems only (Linux, macOS, WSL)" in printed
    assert printed.count("\n") == 1


def test_another_plan_ends_with_2_and_names_the_field(zoo, recipe, capsys):
    assert main(["build", "--config", str(recipe), "--out", str(zoo)]) == 2
    assert "recipe.seed was 4, now 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["build"], ["list", "cats"], ["verify"], ["fly"], ["build", "--confg", "x"]])
def test_bad_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_python_dash_m_is_the_same_command(recipe):
    ended = subprocess.run([sys.executable, "-m", "zoo_builder", "--help"], capture_output=True, text=True, check=True)
    assert "zoo-builder" in ended.stdout
