"""Real builds, really killed: a hundred times at random, and at every call to the system that makes a file durable."""

import os
import random
import re
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

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 2, "input_size": 1, "output_size": 1}],
    "learning": {"class": "Planted"},
    "snapshots": [0],
    "models_per_cohort": 60,
    "shard_size": 1,
    "labels": ["MemoryMode"],
}
KILLS = 100


def command(recipe, out):
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    return [sys.executable, "-m", "zoo_builder", "build", "--config", str(path), "--out", str(out), "--workers", "1"]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def progress(out):
    return len(list((out / "shards").iterdir())) if (out / "shards").is_dir() else 0


def wait_for_the_moment(process, out, draw):
    """Wait for a time to kill a build: as Python starts, some shards on, or as they are merged; or till its end."""
    if draw.random() < 0.1:
        time.sleep(draw.uniform(0, 4))
        return
    shards = progress(out) + draw.randint(0, 9)
    while process.poll() is None and progress(out) < min(shards, RECIPE["models_per_cohort"]):
        time.sleep(0.0005)
    if progress(out) == RECIPE["models_per_cohort"]:
        if draw.random() < 0.3:
            process.wait()
        while process.poll() is None and not list(out.glob(".staging/*/models.parquet")):
            time.sleep(0.0005)
    time.sleep(draw.uniform(0, 0.05))


def test_a_hundred_kills_at_random_times_end_in_the_same_bytes(tmp_path):
    build(RECIPE, tmp_path / "unbroken", workers=1, engine=run_here)
    promised = contents(tmp_path / "unbroken")
    draw, kills, finished, seen = random.Random(0), 0, 0, set()
    while kills < KILLS or not finished:
        out = tmp_path / f"zoo-{finished}"
        process = subprocess.Popen(command(RECIPE, out), env=environment(), start_new_session=True)
        wait_for_the_moment(process, out, draw)
        if process.poll() is None:
            # The builder alone, whose worker then has to notice, or both at once.
            (os.kill if draw.random() < 0.5 else os.killpg)(process.pid, signal.SIGKILL)
            kills += 1
            process.wait()
            seen.add(progress(out))
            if (out / "zoo.json").exists():
                assert verify(out) == []
            continue
        assert process.returncode == 0
        assert contents(out) == promised
        shutil.rmtree(out)
        finished += 1
    print(f"{kills} kills, {finished} builds finished, killed at {len(seen)} different numbers of shards")
    assert len(seen) > 20


SMALL = {**RECIPE, "models_per_cohort": 2}


def injected(recipe, out, call, fault, number, follow):
    """Exit status of a build of which strace makes the `number`th `call` of a process end by `fault`, and its words."""
    traced = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}"]
    traced += ["-f"] if follow else []
    ended = subprocess.run([*traced, *command(recipe, out)], env=environment(), capture_output=True, text=True)
    return ended.returncode, ended.stderr


def strace_works():
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-qq", "-e", "inject=fsync:error=EIO", "true"], capture_output=True)
    return tried.returncode == 0


needs_strace = pytest.mark.skipif(not strace_works(), reason="needs strace, and leave to trace")


@needs_strace
@pytest.mark.parametrize("follow", [False, True], ids=["builder", "builder and worker"])
@pytest.mark.parametrize(("call", "least"), [("fsync", 8), ("rename", 2), ("write", 6)])
def test_a_build_killed_at_every_call_ends_in_the_same_bytes(tmp_path, call, follow, least):
    build(SMALL, tmp_path / "unbroken", workers=1, engine=run_here)
    promised, killed = contents(tmp_path / "unbroken"), 0
    for number in range(1, 500):
        out = tmp_path / "zoo"
        status, _ = injected(SMALL, out, call, "signal=KILL", number, follow)
        if (out / "zoo.json").exists():
            assert verify(out) == []
        build(SMALL, out, workers=1, engine=run_here)
        assert contents(out) == promised, number
        shutil.rmtree(out)
        if status == 0:
            break
        killed += 1
    print(f"{call}: killed at {killed} calls")
    assert killed == number - 1 >= least


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_build_whose_disk_fails_at_any_flush_says_so_in_a_line(tmp_path, error):
    build(SMALL, tmp_path / "unbroken", workers=1, engine=run_here)
    promised = contents(tmp_path / "unbroken")
    for number in range(1, 100):
        out = tmp_path / "zoo"
        status, words = injected(SMALL, out, "fsync", f"error={error}", number, True)
        build(SMALL, out, workers=1, engine=run_here)
        assert contents(out) == promised
        shutil.rmtree(out)
        if status == 0:
            break
        assert status == 2
        assert "Traceback" not in words
        assert re.search(r"(could not be written|No room for).*run the same command again", words)
    assert number > 5


FULL = """
set -e
mount -t tmpfs -o size=600k none {folder}
head -c 560k /dev/zero > {folder}/filler
status=0
{command} 2> {words} || status=$?
test $status = 2
rm {folder}/filler
{command}
cp -r {folder}/zoo {copy}
"""


def test_a_build_on_a_full_disk_goes_on_when_there_is_room(tmp_path):
    if subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs a mount of its own")
    build(SMALL, tmp_path / "unbroken", workers=1, engine=run_here)
    (tmp_path / "small").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    build_it = f"{sys.executable} -m zoo_builder build --config {recipe} --out {tmp_path}/small/zoo --workers 1"
    script = FULL.format(folder=tmp_path / "small", command=build_it, words=tmp_path / "words", copy=tmp_path / "copy")
    space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    ended = subprocess.run(space, env=environment(), capture_output=True, text=True)
    words = (tmp_path / "words").read_text()
    assert ended.returncode == 0, ended.stderr + words
    assert re.search(r"No room for .*small/zoo.*, which needs [\d,]+ bytes", words)
    assert "Traceback" not in words
    assert contents(tmp_path / "copy") == contents(tmp_path / "unbroken")
