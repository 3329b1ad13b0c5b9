"""Memory that a piece of work in this process takes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path


def peak_memory(work: Callable[[], object]) -> float | None:
    """Bytes of memory that work needs beyond those in use before it; None where the system cannot tell."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # Freed memory goes back to the system: else work that takes it again would not be seen.
        ctypes.CDLL(None).malloc_trim(0)
    reset = Path("/proc/self/clear_refs")
    before = _resident("VmRSS")
    with contextlib.suppress(OSError):
        # The high-water mark starts again here.
        reset.write_text("5")
    work()
    after = _resident("VmHWM")
    return None if before is None or after is None or not reset.exists() else after - before


def _resident(field: str) -> float | None:
    try:
        match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return float(match[1]) * 1024 if match else None
