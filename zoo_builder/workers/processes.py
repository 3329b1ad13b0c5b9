"""Worker processes, and the distribution of shards among them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightspace import child
from weightspace.container import num_cores
from zoo_builder.workers.environment import ENVIRONMENT
from zoo_builder.workers.job import Job

Report = Callable[[Mapping[str, Any]], None]
"""Receiver of the messages of workers: "progress" (work done on a "shard") and "done" (the index of a shard)."""
Engine = Callable[[Job, Sequence[int], int | None, Report], None]
"""Function that makes shards, of a job, indices, the number of workers (None: as many as fit) and a report."""


class BuildFailed(ValueError):
    """Failure of a shard; the message names it with the reason."""


def chosen_workers(workers: int | None, device: str) -> int:
    """Number of processes: as asked for, else one per core, or one on CUDA, where several would take turns."""
    if workers is None:
        return 1 if device == "cuda" else num_cores()
    if workers < 1:
        raise ValueError(f"`workers` (={workers}) must be at least 1.")
    return workers


def run_shards(job: Job, indices: Sequence[int], workers: int | None, report: Report) -> None:
    """Make the shards `indices` by worker processes on this machine; for `workers` None see `chosen_workers`.

    Workers are processes of their own, not forks, because their environment must be set before they import torch.
    Raises BuildFailed at the first shard that fails; no worker is left behind, whatever happens.
    """
    workers = chosen_workers(workers, job.device)
    waiting = list(reversed(indices))
    messages: queue.Queue[tuple[int, Mapping[str, Any] | None]] = queue.Queue()
    processes: list[subprocess.Popen[str]] = []
    listeners: list[threading.Thread] = []
    try:
        for number in range(min(workers, len(indices))):
            processes.append(_start(job))
            listeners.append(threading.Thread(target=_listen, args=(processes[-1], number, messages), daemon=True))
            listeners[-1].start()
            _order(processes[-1], waiting.pop())
        missing = len(indices)
        while missing:
            number, message = messages.get()
            _refuse_failure(processes[number], message)
            assert message is not None
            report(message)
            if "done" in message:
                missing -= 1
                if waiting:
                    _order(processes[number], waiting.pop())
    finally:
        for process in processes:
            process.kill()
        for process, listener in zip(processes, listeners, strict=False):
            listener.join()
            _close(process)


def _start(job: Job) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        child.command("zoo_builder.workers.worker"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, **ENVIRONMENT},
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job.to_json() + "\n")
    return process


def _order(process: subprocess.Popen[str], index: int) -> None:
    assert process.stdin is not None
    # A closed stdout tells that a worker has died.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps({"shard": index}) + "\n")


def _close(process: subprocess.Popen[str]) -> None:
    process.wait()
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()


def _listen(
    process: subprocess.Popen[str], number: int, messages: queue.Queue[tuple[int, Mapping[str, Any] | None]]
) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        messages.put((number, json.loads(line)))
    messages.put((number, None))


def _refuse_failure(process: subprocess.Popen[str], message: Mapping[str, Any] | None) -> None:
    if message is None:
        code = process.wait()
        died = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        raise BuildFailed(f"A worker {died}. Run the same command again: finished shards are kept.")
    if "error" in message:
        raise BuildFailed(f"Shard {message['shard']:05d}: {message['error']}")
