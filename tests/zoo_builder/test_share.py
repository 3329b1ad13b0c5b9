"""Many builders on one folder: shares in any order, at once, over again, beside whole builds."""

import copy
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from tests.zoo_builder.test_relabel import contents, run_here
from weightspace import store
from weightspace.store import open_zoo, verify
from zoo_builder.build import build
from zoo_builder.share import Share
from zoo_builder.workers.processes import run_shards

RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 3}, {"class": "GRU", "hidden_size": 2}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 5, "delay": {"integers": [1, 4]}}],
    "learning": {"class": "BPTT", "num_updates": 4, "batch_size": 3},
    "snapshots": [0, 4],
    "models_per_cohort": 7,
    "shard_size": 2,
    "labels": ["Performance"],
    "rollouts": {"sequences": 2},
}


def share(text, out, recipe=RECIPE, engine=run_here):
    return build(recipe, out, workers=1, method="torch", share=Share.parse(text), engine=engine)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("share") / "whole"
    build(RECIPE, path, method="torch", engine=run_here)
    return path


def test_shares_hold_every_shard_once_and_spread_each_cohort():
    for count in (1, 2, 3, 7, 20):
        shares = [Share(number, count).of(12) for number in range(1, count + 1)]
        assert sorted(index for indices in shares for index in indices) == list(range(12))
    assert list(Share(2, 3).of(8)) == [1, 4, 7]


def test_shares_in_any_order_give_the_bytes_of_one_build_and_the_last_merges(whole, tmp_path):
    out = tmp_path / "zoo"
    first = share("1/3", out)
    assert (first.built, first.missing, first.fingerprint) == (3, 5, None)
    assert share("3/3", out).missing == 3
    assert not (out / "zoo.json").exists()
    # Over again, as when a job is requeued.
    again = share("3/3", out)
    assert (again.built, again.missing) == (0, 3)
    last = share("2/3", out)
    assert (last.built, last.missing, last.fingerprint) == (3, 0, open_zoo(whole).fingerprint)
    assert contents(out) == contents(whole)
    assert not (out / ".staging").exists()
    assert share("1/3", out).built == 0


def test_shares_at_the_same_time_give_the_same_bytes_and_one_of_them_merges(whole, tmp_path):
    out = tmp_path / "zoo"
    with ThreadPoolExecutor(4) as pool:
        # One share twice: a job that was requeued while it still ran.
        shares = ("2/3", "1/3", "3/3", "2/3")
        built = list(pool.map(lambda text: share(text, out, engine=run_shards), shares))
    assert sum(one.fingerprint is not None for one in built) >= 1
    assert contents(out) == contents(whole)
    assert verify(out) == []


def test_a_whole_build_finishes_what_shares_began_and_another_plan_is_refused(whole, tmp_path):
    out = tmp_path / "zoo"
    share("2/2", out)
    changed = copy.deepcopy(RECIPE)
    changed["learning"]["batch_size"] = 4
    with pytest.raises(ValueError, match=r"recipe\.learning\.batch_size was 3, now 4"):
        share("1/2", out, changed)
    assert build(RECIPE, out, method="torch", engine=run_here).built == 4
    assert contents(out) == contents(whole)


def test_a_build_that_died_before_the_merge_is_finished_by_any_share(whole, tmp_path):
    out = tmp_path / "zoo"
    shutil.copytree(whole, out)
    for name in ("zoo.json", "models.parquet"):
        (out / name).unlink()
    merged = share("5/9", out)
    assert (merged.built, merged.fingerprint) == (0, open_zoo(whole).fingerprint)
    assert contents(out) == contents(whole)


def test_whole_builders_keep_others_off_and_shares_keep_whole_builders_off(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 61))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    for held_shared, asked in ((False, None), (False, Share(1, 2)), (True, None)):
        out = tmp_path / f"{held_shared}-{asked is None}"
        out.mkdir()
        with (
            store.locked(out, shared=held_shared),
            pytest.raises(ValueError, match="Another builder is at work"),
        ):
            build(RECIPE, out, method="torch", share=asked)
        assert not (out / "shards").exists()


def test_a_shared_hold_becomes_one_alone_only_for_the_last(tmp_path):
    with store.locked(tmp_path, shared=True) as first:
        with store.locked(tmp_path, shared=True) as second:
            assert not first.try_alone()
            assert second.try_alone()
            # Who waits for a lock that is tidied away takes the new one.
            with pytest.raises(ValueError, match="at work"), store.locked(tmp_path, shared=True, patience=0):
                pass
        assert not (tmp_path / ".staging").exists()
        assert not first.try_alone()
        with store.locked(tmp_path):
            assert not first.try_alone()


def test_where_there_are_no_locks_shares_are_made_and_a_whole_build_merges(whole, tmp_path, monkeypatch, caplog):
    def without(handle, mode):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("weightspace.store.lock.fcntl.flock", without)
    out = tmp_path / "zoo"
    shutil.copytree(whole, out)
    (out / "zoo.json").unlink()
    built = share("2/2", out)
    assert (built.missing, built.fingerprint) == (0, None)
    assert "has no locks (Function not implemented)" in caplog.text
    assert build(RECIPE, out, method="torch").built == 0
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_commands_of_a_job_array_give_the_same_bytes(whole, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    command = [sys.executable, "-m", "zoo_builder", "build", "--config", tmp_path / "recipe.yaml", "--workers", "1"]
    command += ["--method", "torch"]
    jobs = [
        subprocess.Popen([*map(str, command), "--out", str(tmp_path / "zoo"), "--shard", f"{number}/5"])
        for number in (4, 1, 5, 2, 3)
    ]
    assert [job.wait(timeout=300) for job in jobs] == [0] * 5
    assert contents(tmp_path / "zoo") == contents(whole)
