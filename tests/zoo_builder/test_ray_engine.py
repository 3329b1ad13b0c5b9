"""Ray as engine: the bytes of a local build, whoever is killed on the way; and clear errors without it."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from weightspace.store import verify
from zoo_builder.build import build
from zoo_builder.cli import main
from zoo_builder.workers import ray as ray_engine
from zoo_builder.workers.processes import run_shards

RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 3}, {"class": "GRU", "hidden_size": 5}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 5, "delay": {"integers": [1, 4]}}],
    # Long enough for a shard to be in the making when its worker is hit.
    "learning": {"class": "BPTT", "num_updates": 60, "batch_size": 3, "learning_rate": {"choice": [0.01, 1e38]}},
    "snapshots": [0, 20, 60],
    "models_per_cohort": 8,
    "shard_size": 2,
    "labels": ["Performance"],
    "rollouts": {"sequences": 2},
}

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("ray") / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def promised(recipe):
    build(RECIPE, recipe.parent / "local", workers=2)
    return contents(recipe.parent / "local")


def start(recipe, out):
    command = [sys.executable, "-m", "zoo_builder", "build", "--config", recipe, "--out", out, "--json"]
    options = ["--engine", "ray", "--workers", "2"]
    return subprocess.Popen([*map(str, command), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def descendants(pid):
    """All processes below one, with what they call themselves."""
    found = {}
    for child in children(pid):
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        found |= descendants(child)
    return found


def children(pid):
    try:
        return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    except OSError:
        return []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def at_work(pid):
    """The workers that are making a shard just now, as Ray names its processes."""
    return [child for child, name in descendants(pid).items() if name.startswith("ray::make")]


def shards_there(out):
    return len(list((out / "shards").iterdir())) if (out / "shards").is_dir() else 0


def wait_until(condition, patience=120.0):
    end = time.monotonic() + patience
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


@with_ray
@pytest.mark.slow
def test_a_build_by_ray_has_the_bytes_of_a_local_one(recipe, promised, tmp_path):
    process = start(recipe, tmp_path / "zoo")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(printed)["built"] == 8
    assert contents(tmp_path / "zoo") == promised
    assert verify(tmp_path / "zoo") == []


@with_ray
@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_shard_changes_nothing(recipe, promised, tmp_path):
    out = tmp_path / "zoo"
    process = start(recipe, out)
    for there in (0, 3):
        wait_until(lambda: at_work(process.pid) and shards_there(out) >= there)  # noqa: B023
        os.kill(at_work(process.pid)[0], signal.SIGKILL)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(printed)["built"] == 8
    assert contents(out) == promised


@with_ray
@pytest.mark.slow
def test_a_killed_driver_leaves_no_worker_and_the_same_command_goes_on(recipe, promised, tmp_path):
    out = tmp_path / "zoo"
    process = start(recipe, out)
    wait_until(lambda: at_work(process.pid) and shards_there(out) >= 2)
    workers = at_work(process.pid)
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not any(map(alive, workers)), patience=30)
    there = shards_there(out)
    assert 2 <= there < 8
    assert not (out / "zoo.json").exists()
    again = start(recipe, out)
    printed, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert json.loads(printed)["built"] == 8 - there
    assert contents(out) == promised


@with_ray
@pytest.mark.slow
def test_a_terminated_build_ends_with_its_own_status(recipe, tmp_path):
    process = start(recipe, tmp_path / "zoo")
    wait_until(lambda: at_work(process.pid))
    process.terminate()
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert printed == ""
    assert errors.count("run the same command again") == 1


@pytest.mark.slow
def test_the_order_in_which_shards_are_made_changes_nothing(promised, tmp_path):
    def backwards_and_mixed(job, indices, workers, report):
        run_shards(job, sorted(indices, key=lambda index: (index % 3, -index)), workers, report)

    build(RECIPE, tmp_path / "zoo", workers=2, engine=backwards_and_mixed)
    assert contents(tmp_path / "zoo") == promised


def test_without_ray_the_error_is_one_line_with_the_way_out(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["build", "--config", str(recipe), "--out", str(tmp_path / "zoo"), "--engine", "ray"]) == 2
    assert capsys.readouterr().err == "zoo-builder: `--engine ray` needs Ray: pip install 'weightspace[ray]'\n"


def test_an_address_without_ray_is_refused(recipe, tmp_path, capsys):
    command = ["build", "--config", str(recipe), "--out", str(tmp_path / "zoo"), "--address", "head:6379"]
    assert main(command) == 2
    assert "`--address head:6379` has no effect on `--engine processes`" in capsys.readouterr().err


@with_ray
def test_an_address_at_which_nobody_listens_is_refused_at_once(recipe, tmp_path, capsys):
    command = ["build", "--config", str(recipe), "--out", str(tmp_path / "zoo"), "--engine", "ray"]
    assert main([*command, "--address", "127.0.0.1:1"]) == 2
    assert "No Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err


def test_a_machine_of_another_kind_or_without_the_folder_refuses_the_job(tmp_path):
    from zoo_builder.workers import ray as ray_engine

    job = {"out": str(tmp_path), "recipe": {}, "identity": {}}
    assert "give a folder on a file system that all machines share" in ray_engine.make(json.dumps(job), 0)
    seen = []

    def engine(job, indices, workers, report):
        other = json.loads(json.dumps(job))
        other["identity"]["executor"]["vectors"] = "NEON"
        seen.append(json.loads(ray_engine.make(json.dumps(other), 0))["error"])
        for index in indices:
            report(json.loads(ray_engine.make(json.dumps(job), index)))

    short = {**RECIPE, "learning": {**RECIPE["learning"], "num_updates": 2}, "snapshots": [0, 2], "shard_size": 8}
    build(short, tmp_path / "zoo", engine=engine)
    assert "is no machine for this build: executor.vectors was" in seen[0]
    build(short, tmp_path / "local", workers=1)
    assert contents(tmp_path / "zoo") == contents(tmp_path / "local")


def test_what_ray_prints_until_it_is_shut_down_never_mixes_with_results(monkeypatch, capsys):
    pretended = SimpleNamespace(init=lambda *_, **__: None, shutdown=lambda: print("A worker died."))
    monkeypatch.setitem(sys.modules, "ray", pretended)
    with ray_engine._cluster("local", 1):
        print("A worker was killed.")
    print("{}")
    assert capsys.readouterr() == ("{}\n", "A worker was killed.\nA worker died.\n")
