"""Machine of a benchmark, and the peak speed of one core."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from weightspace.container import num_cores

FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "asimd", "sve")
"""Flags of the processor for the width of vectors and for fused multiply-add."""
PEAK_TURNS = 10_000_000


def machine() -> dict[str, Any]:
    """Processor, load (mean of the last minute), and versions of the libraries that compute."""
    from weightspace.rollout.native import compiler_version
    from weightspace.rollout.native.engine.compiler import NoNative

    try:
        compiled_by = compiler_version()
    except NoNative:
        compiled_by = None
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = set((_field(text, "flags") or _field(text, "Features") or "").split())
    return {
        "processor": _field(text, "model name") or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in flags],
        "cores": num_cores(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
        "compiler": compiled_by,
        "versions": {"python": platform.python_version(), **{name: _version_of(name) for name in ("torch", "jax")}},
    }


def _field(text: str, name: str) -> str | None:
    match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peak(clock: Callable[[], float] = time.thread_time) -> float | None:
    """float32 operations a second of one core in a loop of multiplications and additions; None without a compiler."""
    from weightspace.rollout.native.engine.compiler import NoNative, library

    try:
        loop = library(str(Path(__file__).parent / "peak.c"))
    except NoNative:
        return None
    loop.operations.restype = ctypes.c_int64
    loop.run.restype = ctypes.c_float
    start = clock()
    loop.run(ctypes.c_int64(PEAK_TURNS))
    speed: float = loop.operations() * PEAK_TURNS / (clock() - start)
    return speed
