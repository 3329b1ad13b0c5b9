"""A process that trains by one method: jobs on stdin, answers on stdout, one line of JSON each.

One process per method, because JAX and torch read their threads from the environment when they are imported, and so
that the memory of one is not that of another. Only one of them works at a time.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from weightspace.components import plugins
from zoo_builder.bench.case import Case, draw, flops
from zoo_builder.bench.methods import Method
from zoo_builder.bench.resident import peak_memory
from zoo_builder.bench.run import METHODS

MEASURED = 2
"""Updates over which peak memory is measured."""
LEAST_SECONDS = 0.2
"""Seconds of one measurement, which has as many updates as that takes."""


def main() -> None:
    """Serve one benchmark, whose first line is the job, and end when its stdin closes."""
    # Ctrl-C in the terminal reaches all processes, and the benchmark stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # Output of other code must not mix with the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = json.loads(sys.stdin.readline())
    for answer in _serve(job):
        try:
            answers.write(json.dumps(answer) + "\n")
        except BrokenPipeError:
            os._exit(1)


def _serve(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        torch.set_num_threads(job["threads"])
        plugins.allow(*job["allow_import"])
        module, name = METHODS[job["method"]]
        kind = getattr(importlib.import_module(module), name)
        yield {"ready": True}
        method, updates = None, 1
        for line in sys.stdin:
            order = json.loads(line)
            if "case" in order:
                # The previous case must be freed before memory is measured.
                method = None
                method, updates, answer = _prepared(kind, Case(**order["case"]))
                yield answer
            else:
                assert method is not None
                yield _timed(method, updates)
    except Exception as error:
        traceback.print_exc()
        yield {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _prepared(kind: Any, case: Case) -> tuple[Method | None, int, dict[str, Any]]:
    """The method with the case's data, after its first updates, and the answer about it."""
    reason = kind.why_not(case)
    if reason is not None:
        return None, 0, {"why_not": reason}
    method: Method = kind(case, draw(case))
    # Compilation, caches and imports on first use are no part of an update.
    loss = method.update().double().mean().item()
    method.update(method.together)
    start = time.perf_counter()
    peak = peak_memory(lambda: method.update(MEASURED * method.together))
    seconds = (time.perf_counter() - start) / (MEASURED * method.together)
    if peak is not None:
        peak = max(0.0, peak - method.passing_gradients * case.load().spec.num_parameters * 4)
    updates = max(1, math.ceil(LEAST_SECONDS / (seconds * method.together))) * method.together
    return method, updates, {"loss": loss, "peak_memory": peak, "flops": flops(case)}


def _timed(method: Method, updates: int) -> dict[str, float]:
    gc.collect()
    # Warm up: while other processes worked, the data of this one left the cache.
    method.update(method.together)
    cpu, wall = time.process_time(), time.perf_counter()
    method.update(updates)
    return {"cpu": (time.process_time() - cpu) / updates, "wall": (time.perf_counter() - wall) / updates}


if __name__ == "__main__":
    main()
