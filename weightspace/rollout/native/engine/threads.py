"""Threads that divide one call of native code, kept from call to call."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # Kept: a new thread often waits for the core of the thread that made it.
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)


def at_once(work: Sequence[Callable[[], None]]) -> None:
    """Do the first work here and each of the others in a thread of its own.

    Workers pull from a shared counter; one that has not started when the first ends is cancelled.
    """
    futures = [_pool(len(work) - 1).submit(task) for task in work[1:]]
    work[0]()
    for future in futures:
        if not future.cancel():
            future.result()
