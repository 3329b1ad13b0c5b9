"""Shards made in the present process, one after another: studies and notebooks would wait for new processes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from zoo_builder.workers import processes
from zoo_builder.workers.environment import ENVIRONMENT
from zoo_builder.workers.job import Job
from zoo_builder.workers.processes import BuildFailed, Report

logger = logging.getLogger(__name__)


def prepare() -> None:
    """Set the environment that shards need, unless torch is imported already, which reads it then."""
    if "torch" not in sys.modules:
        os.environ.update(ENVIRONMENT)


def misfit() -> dict[str, str | None]:
    """Variables of the environment that differ from what shards need, with their values."""
    return {name: os.environ.get(name) for name, value in ENVIRONMENT.items() if os.environ.get(name) != value}


def run_shards(job: Job, indices: Sequence[int], workers: int | None, report: Report) -> None:
    """Make the shards `indices` in this process, with the bytes that worker processes would give them.

    Where this process has another environment than they need, or more than one worker is asked for, worker processes
    make them. Raises BuildFailed at the first shard that fails.
    """
    different = misfit()
    if different:
        needed = " ".join(f"{name}={ENVIRONMENT[name]}" for name in different)
        logger.warning(
            "Shards are made in worker processes, which takes seconds longer: in this one torch was imported without "
            "%s. Call zoo_builder.workers.in_process.prepare() before anything imports torch.",
            needed,
        )
    if different or processes.chosen_workers(workers or 1, job.device) > 1:
        processes.run_shards(job, indices, workers, report)
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _run(job, indices, report)
    finally:
        torch.set_num_threads(threads)


def _run(job: Job, indices: Sequence[int], report: Report) -> None:
    # Imported here because these import torch, before which `prepare` must run.
    from zoo_builder.planning.plan import make_plan
    from zoo_builder.workers.making import make_and_write

    plan = make_plan(job.recipe, Path(job.out))
    for index in indices:
        try:
            make_and_write(job, plan, plan.shards[index], _progress_of(index, report))
        except (ValueError, OSError) as error:
            raise BuildFailed(f"Shard {index:05d}: {error}") from error
        report({"done": index})


def _progress_of(index: int, report: Report) -> Callable[[int], None]:
    return lambda count: report({"progress": count, "shard": index})
