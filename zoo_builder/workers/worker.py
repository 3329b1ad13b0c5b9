"""A worker process: makes the shards it is told to on stdin, and reports on stdout, one line of JSON each.

It ends when its stdin closes, so that no worker outlives its builder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

# Torch's matrix products must have one summation order, whatever the size of the stack and a model's place in it; MKL
# promises that if told before torch is imported. One thread each: workers are as many as cores.
ENVIRONMENT = {
    "MKL_CBWR": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # The same for products on CUDA, whatever the streams: cuBLAS promises it for workspaces of a fixed size.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def main() -> None:
    """Serve one builder: its first line is the job, every further line the index of a shard."""
    # The builder stops its workers; Ctrl-C in the terminal reaches all of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # What anything else prints must not mix with the reports.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, orders), daemon=True).start()
    job = orders.get()
    try:
        _serve(job, orders, reports)
    except BrokenPipeError:
        os._exit(1)


def _listen(stdin: TextIO, orders: queue.Queue[dict[str, Any]]) -> None:
    for line in stdin:
        orders.put(json.loads(line))
    os._exit(0)


def _serve(job: dict[str, Any], orders: queue.Queue[dict[str, Any]], reports: TextIO) -> None:
    import torch

    from weightspace.components import plugins
    from zoo_builder.planning.plan import make_plan

    torch.set_num_threads(1)
    # The builder has said what the file system cannot do.
    logging.getLogger("weightspace.store").setLevel(logging.ERROR)
    plugins.allow(*job["allow_import"])
    plan = make_plan(job["recipe"])
    shards = plan.shards
    while True:
        index = orders.get()["shard"]
        try:
            _make(job, plan, shards[index], reports)
        except (ValueError, OSError) as error:
            _report(reports, {"error": str(error), "shard": index})
        except Exception:
            traceback.print_exc(file=sys.stderr)
            _report(reports, {"error": "the builder failed, see the traceback above", "shard": index})
        else:
            _report(reports, {"done": index})


def _make(job: dict[str, Any], plan: Any, shard: Any, reports: TextIO) -> None:
    told = time.monotonic()
    waiting = 0

    def progress(count: int) -> None:
        nonlocal told, waiting
        waiting += count
        if time.monotonic() - told > 0.5:
            _report(reports, {"progress": waiting})
            told, waiting = time.monotonic(), 0

    make_and_write(job, plan, shard, progress)


def make_and_write(
    job: Mapping[str, Any], plan: Any, shard: Any, progress: Callable[[int], None] | None = None
) -> None:
    """Do what a job asks for one shard: make it, or measure its labels, and put the result into place."""
    if "relabel" in job:
        from zoo_builder.relabel import stage_shard

        stage_shard(Path(job["out"]), plan, shard, **job["relabel"])
        return
    from weightspace.store import write_shard
    from zoo_builder.planning.bounds import memory_named
    from zoo_builder.shard import make_shard

    with memory_named(plan, shard.cohort):
        content = make_shard(plan, shard, job["device"], job["method"], progress)
    write_shard(Path(job["out"]), shard.index, content, job["plan"])


def _report(reports: TextIO, message: dict[str, Any]) -> None:
    reports.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
