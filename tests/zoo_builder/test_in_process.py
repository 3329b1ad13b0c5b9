"""The engine without worker processes: the bytes of the ordinary one, where the environment is the same."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from zoo_builder.build import build
from zoo_builder.workers import in_process, making, processes
from zoo_builder.workers.environment import ENVIRONMENT
from zoo_builder.workers.job import Job
from zoo_builder.workers.processes import BuildFailed

RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 3}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 5, "delay": {"integers": [1, 4]}}],
    "learning": {"class": "BPTT", "num_updates": 20, "batch_size": 3, "learning_rate": {"choice": [0.01, 1e38]}},
    "snapshots": [0, 10, 20],
    "models_per_cohort": 5,
    "shard_size": 3,
    "labels": ["Performance"],
    "rollouts": {"sequences": 2},
}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Products of torch are what the environment decides; the native ones of a worker and of this process: test_bytes.
@pytest.fixture(scope="module", params=[pytest.param("native", marks=pytest.mark.slow), "torch"])
def method(request):
    return request.param


@pytest.fixture(scope="module")
def promised(method, tmp_path_factory):
    out = tmp_path_factory.mktemp("ordinary") / "zoo"
    build(RECIPE, out, workers=1, method=method)
    return contents(out)


def no_process(*arguments, **options):
    raise AssertionError("a process was started")


def test_shards_made_in_process_have_the_bytes_of_worker_processes(method, promised, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run_shards", no_process)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        build(RECIPE, tmp_path / "zoo", method=method, engine=in_process.run_shards)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "zoo") == promised


JOB = Job(recipe={}, out="/zoo", device="cpu", method="native", allow_import=())


def test_a_program_that_prepares_before_torch_is_imported_gets_the_same_bytes(promised, method, tmp_path):
    bare = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    code = f"""
from zoo_builder.workers import in_process
in_process.prepare()
from zoo_builder.build import build
from zoo_builder.workers import processes
processes.run_shards = None
build({RECIPE!r}, {str(tmp_path / "zoo")!r}, method={method!r}, engine=in_process.run_shards)
"""
    subprocess.run([sys.executable, "-c", code], env=bare, check=True)
    assert contents(tmp_path / "zoo") == promised


def test_without_the_environment_it_says_so_and_worker_processes_do_the_work(monkeypatch, caplog):
    calls = []
    monkeypatch.setattr(processes, "run_shards", lambda job, indices, workers, report: calls.append(list(indices)))
    monkeypatch.delenv("MKL_CBWR")
    with caplog.at_level(logging.WARNING):
        in_process.run_shards(JOB, [0, 1], None, print)
    assert calls == [[0, 1]]
    (record,) = caplog.records
    assert "in this one torch was imported without MKL_CBWR=AVX2" in record.getMessage()


def test_preparing_after_torch_was_imported_changes_nothing(monkeypatch):
    monkeypatch.delenv("MKL_CBWR")
    in_process.prepare()
    assert in_process.misfit() == {"MKL_CBWR": None}


def test_several_workers_are_processes(monkeypatch):
    calls = []
    monkeypatch.setattr(processes, "run_shards", lambda job, indices, workers, report: calls.append(workers))
    in_process.run_shards(JOB, [0, 1], 2, print)
    assert calls == [2]
    with pytest.raises(ValueError, match="`workers`"):
        in_process.run_shards(JOB, [0, 1], -1, print)


def test_a_shard_that_fails_is_named(tmp_path, monkeypatch, caplog):
    def failing(*arguments):
        raise ValueError("no room")

    monkeypatch.setattr(making, "make_and_write", failing)
    with caplog.at_level(logging.WARNING), pytest.raises(BuildFailed, match="Shard 00000: no room"):
        build(RECIPE, tmp_path / "zoo", engine=in_process.run_shards)
    assert caplog.records == []
