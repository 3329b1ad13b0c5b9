"""Shards made on many machines by Ray (the extra `ray`): one task a shard, made again elsewhere if its worker dies."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from weightspace import child
from weightspace.components import plugins
from weightspace.store import STAGING
from zoo_builder.differences import refuse_differences
from zoo_builder.executor import build_identity
from zoo_builder.planning.plan import Plan, make_plan
from zoo_builder.workers.environment import ENVIRONMENT
from zoo_builder.workers.job import Job
from zoo_builder.workers.making import make_and_write
from zoo_builder.workers.processes import BuildFailed, Report

# How often a shard is begun again after its worker or machine has died.
RETRIES = 5
# Tasks given to Ray at a time: enough to keep a large cluster busy, and no more than its bookkeeping likes.
WINDOW = 2000


def run_shards(
    job: Job, indices: Sequence[int], workers: int | None, report: Report, address: str | None = None
) -> None:
    """Have the shards `indices` made by the Ray cluster at `address`, at most `workers` at a time.

    Without an address it is the cluster that RAY_ADDRESS names, or one of this machine's own, gone when the build ends.
    Raises BuildFailed at the first shard that fails.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"`workers` (={workers}) must be at least 1.")
    if not indices:
        return
    with _cluster(address, workers) as ray:
        _run(ray, job, indices, workers or WINDOW, report)


def _run(ray: Any, job: Job, indices: Sequence[int], at_once: int, report: Report) -> None:
    task = ray.remote(
        num_cpus=1,
        num_gpus=0 if job.device == "cpu" else 1,
        max_retries=RETRIES,
        # Libraries read the environment when torch is imported, so Ray starts its workers with it.
        runtime_env={"env_vars": ENVIRONMENT},
    )(make)
    shipped = ray.put(job.to_json())
    waiting = list(reversed(indices))
    running: dict[int, Any] = {}
    # Wait here and not inside Ray, which replaces the exception of a signal handler.
    ended: queue.Queue[tuple[int, Any]] = queue.Queue()
    while waiting or running:
        while waiting and len(running) < at_once:
            index = waiting.pop()
            running[index] = task.remote(shipped, index)
            running[index].future().add_done_callback(partial(_ended, ended, index))
        index, result = ended.get()
        del running[index]
        report(_message(ray, index, result))


def _ended(ended: queue.Queue[tuple[int, Any]], index: int, result: Any) -> None:
    ended.put((index, result))


def _message(ray: Any, index: int, result: Any) -> dict[str, Any]:
    """Message of a shard's task; BuildFailed if it failed, or died too often."""
    try:
        message: dict[str, Any] = json.loads(result.result())
    except ray.exceptions.RayError as error:
        reason = str(error).strip().split("\n")[0]
        raise BuildFailed(
            f"Shard {index:05d} was not made, though Ray begins a shard up to {RETRIES + 1} times: {reason} "
            "Run the same command again: finished shards are kept."
        ) from None
    if "error" in message:
        raise BuildFailed(f"Shard {index:05d}: {message['error']}")
    return message


@contextlib.contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """Connection to Ray; its changes to this process are undone at the end."""
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("`--engine ray` needs Ray: pip install 'weightspace[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _refuse_silent(address)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    options = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    try:
        # Workers of Ray import from the current folder first, whatever files it holds.
        with contextlib.nullcontext() if child.imports_from_here() else contextlib.chdir("/"):
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(f"Ray cannot be reached at {address}: {str(error).strip()}") from None
    if in_main:
        signal.signal(signal.SIGTERM, handler)
    # Ray prints lost workers on stdout, which is for results: at once, or at its end.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield ray
        finally:
            ray.shutdown()


def _refuse_silent(address: str) -> None:
    """Refuse an address at which nothing listens: Ray would try for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(f"No Ray cluster answers at {address} ({error}); see `ray status` on its head node.") from None


def make(job: str, index: int) -> str:
    """Make and write one shard on the machine of this task; returns the message for the builder as JSON."""
    try:
        return json.dumps(_make(job, index))
    except (ValueError, OSError) as error:
        return json.dumps({"error": str(error)})
    except Exception:
        # The traceback travels as text: exceptions need not be importable where the builder is.
        return json.dumps({"error": f"the builder failed\n{traceback.format_exc()}"})


def _make(text: str, index: int) -> dict[str, Any]:
    job, plan = _job(text)
    make_and_write(job, plan, plan.shards[index])
    return {"done": index}


@cache
def _job(text: str) -> tuple[Job, Plan]:
    """Job and plan, read once per process; ValueError where this machine would make other bytes or lacks the folder."""
    torch.set_num_threads(1)
    wrong = {name: os.environ.get(name) for name, value in ENVIRONMENT.items() if os.environ.get(name) != value}
    if wrong:
        raise ValueError(f"Ray started a worker without the environment {ENVIRONMENT}: found {wrong}.")
    job = Job.from_json(text)
    assert job.identity is not None
    here = os.uname().nodename
    if not Path(job.out, STAGING).is_dir():
        raise ValueError(f"{here} does not see {job.out}; give a folder on a file system that all machines share.")
    plugins.allow(*job.allow_import)
    plan = make_plan(job.recipe, Path(job.out))
    executor = job.identity["executor"]
    identity = build_identity(plan, executor["device"], executor["method"])
    refuse_differences(job.identity, identity, f"{here} is no machine for this build")
    return job, plan
