"""Builds that are killed, stopped, out of room or met by another builder, end in the same bytes."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.zoo_builder.test_relabel import contents, run_here
from weightspace.store import verify
from zoo_builder.build import build

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc")

RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 3}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 5, "delay": {"integers": [1, 4]}}],
    "learning": {"class": "BPTT", "num_updates": 10, "batch_size": 3},
    "snapshots": [0, 10],
    "models_per_cohort": 12,
    "shard_size": 1,
    "labels": ["Performance"],
    "rollouts": {"sequences": 2},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def promised(recipe):
    build(recipe, recipe.parent / "unbroken", method="torch", engine=run_here)
    return contents(recipe.parent / "unbroken")


def start(recipe, out, **options):
    # Nothing here depends on the method, and workers that trace no family start in half the time.
    build_it = [sys.executable, "-m", "zoo_builder", "build", "--config", recipe, "--out", out]
    command = [*map(str, build_it), "--workers", "1", "--method", "torch"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def shards_there(out):
    return len(list((out / "shards").iterdir())) if (out / "shards").is_dir() else 0


def wait_until(condition, process, patience=60.0):
    end = time.monotonic() + patience
    while not condition() and (process is None or process.poll() is None) and time.monotonic() < end:
        time.sleep(0.01)


def workers_of(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# When (number of shards there), what is hit, by what, and how the build then ends.
BLOWS = [
    (0, "builder", signal.SIGKILL, -9),
    (2, "builder", signal.SIGINT, 130),
    (4, "worker", signal.SIGKILL, 2),
    (7, "builder", signal.SIGTERM, 143),
]


def test_however_a_build_is_stopped_the_same_command_ends_in_the_same_bytes(recipe, promised, tmp_path):
    out = tmp_path / "zoo"
    for shards, target, number, status in BLOWS:
        process = start(recipe, out)
        wait_until(lambda: workers_of(process.pid) and shards_there(out) >= shards, process)  # noqa: B023
        workers = workers_of(process.pid)
        os.kill(process.pid if target == "builder" else workers[0], number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status
        assert "Traceback" not in errors
        assert ("run the same command again" in errors.lower()) == (status > 0)
        # A worker notices that its builder has gone.
        wait_until(lambda: not any(map(alive, workers)), None, patience=10)  # noqa: B023
        assert not any(map(alive, workers))
        assert not (out / "zoo.json").exists()
        if status > 0:
            assert [path.name for path in (out / ".staging").iterdir()] == ["plan.json"]
    assert 7 <= shards_there(out) < 12
    build(recipe, out, method="torch", engine=run_here)
    assert contents(out) == promised
    assert verify(out) == []


def test_a_shard_that_lost_bytes_in_between_is_made_again(recipe, promised, tmp_path, caplog):
    out = tmp_path / "zoo"
    shutil.copytree(recipe.parent / "unbroken", out)
    (out / "zoo.json").unlink()
    (out / "models.parquet").unlink()
    params = out / "shards/00003/params.safetensors"
    params.write_bytes(params.read_bytes()[:-1])
    shutil.rmtree(out / "shards/00008")
    assert build(recipe, out, method="torch", engine=run_here).built == 2
    assert contents(out) == promised
    assert "Shard 00003: params.safetensors is not what was written" in caplog.text


def test_a_full_disk_ends_with_one_line(recipe, tmp_path):
    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))

    out = tmp_path / "zoo"
    process = start(recipe, out, preexec_fn=no_room)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert "No room for" in errors
    assert "bytes" in errors
    assert shards_there(out) == 0
