"""Shards of a job, made in this process one after another."""

from __future__ import annotations

import json
import logging
import queue
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from weightspace.components import plugins
from weightspace.store import write_shard
from zoo_builder.planning.memory import memory_named
from zoo_builder.planning.plan import Plan, Shard, make_plan
from zoo_builder.shard import make_shard, stage_shard
from zoo_builder.workers.job import Job


def serve(lines: queue.Queue[str], reports: TextIO) -> None:
    """Read the job and then indices of shards from lines, make each shard and report it; ends with the process."""
    job = Job.from_json(lines.get())
    torch.set_num_threads(1)
    # The builder has already warned of what the file system lacks.
    logging.getLogger("weightspace.store").setLevel(logging.ERROR)
    plugins.allow(*job.allow_import)
    plan = make_plan(job.recipe, Path(job.out))
    shards = plan.shards
    while True:
        index = json.loads(lines.get())["shard"]
        try:
            make_and_report(job, plan, shards[index], reports)
        except (ValueError, OSError) as error:
            _report(reports, {"error": str(error), "shard": index})
        except Exception:
            traceback.print_exc(file=sys.stderr)
            _report(reports, {"error": "the builder failed, see the traceback above", "shard": index})
        else:
            _report(reports, {"done": index})


def make_and_report(job: Job, plan: Plan, shard: Shard, reports: TextIO) -> None:
    """Do a job for one shard, with its progress in lines of JSON."""
    reported, waiting = time.monotonic(), 0
    _report(reports, {"progress": 0, "shard": shard.index})

    def progress(count: int) -> None:
        nonlocal reported, waiting
        waiting += count
        if time.monotonic() - reported > 0.5:
            _report(reports, {"progress": waiting, "shard": shard.index})
            reported, waiting = time.monotonic(), 0

    make_and_write(job, plan, shard, progress)


def make_and_write(job: Job, plan: Plan, shard: Shard, progress: Callable[[int], None] | None = None) -> None:
    """Do a job for one shard: make it, or measure its labels, and put the result into place."""
    out = Path(job.out)
    if job.labelling is not None:
        stage_shard(out, plan, shard, job.labelling.names, job.labelling.key, job.device, job.method, progress)
        return
    assert job.plan_digest is not None
    with memory_named(plan, shard.cohort):
        content = make_shard(plan, shard, job.device, job.method, progress)
    write_shard(out, shard.index, content, job.plan_digest)


def _report(reports: TextIO, message: dict[str, Any]) -> None:
    reports.write(json.dumps(message) + "\n")
