"""Threads that share out one call of native code, kept from call to call."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # Kept, because a thread that has just been made often waits for the core of the one that made it.
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)


def at_once(work: Sequence[Callable[[], None]]) -> None:
    """Do the first work here and each of the others in a thread of its own.

    All must take what they do from one shared count, so that one which has not begun when the first ends is not needed.
    """
    others = [_pool(len(work) - 1).submit(one) for one in work[1:]]
    work[0]()
    for other in others:
        if not other.cancel():
            other.result()
