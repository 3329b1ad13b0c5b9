"""A worker process: makes the shards that stdin asks for, and reports on stdout, one line of JSON each.

It ends when its stdin closes, so that no worker outlives its builder.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from typing import TextIO


def main() -> None:
    """Serve one builder: its first line is the job, every further line the index of a shard."""
    # The builder stops its workers; Ctrl-C in the terminal reaches all of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # What anything else prints must not mix with the reports.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, lines), daemon=True).start()
    # Put off, because importing torch takes seconds, in which Ctrl-C must be ignored and nothing may be printed.
    from zoo_builder.workers.making import serve

    try:
        serve(lines, reports)
    except BrokenPipeError:
        os._exit(1)


def _listen(stdin: TextIO, lines: queue.Queue[str]) -> None:
    for line in stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
