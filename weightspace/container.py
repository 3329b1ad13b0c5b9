"""Cores and memory that this process may use, with the limits that containers set by control groups."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def num_cores(root: Path = ROOT) -> int:
    """Cores that this process may use, at least 1: those of its affinity, or fewer under a quota of CPU time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([cores, *_quotas(root)]), 1)


def memory(root: Path = ROOT) -> int | None:
    """Bytes of memory that this process may use, None where the system does not tell."""
    files = [folder / name for folder in _groups(root, "memory") for name in ("memory.max", "memory.limit_in_bytes")]
    limits = [limit for limit in map(_number, files) if limit is not None]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _quotas(root: Path) -> Iterator[int]:
    """Cores that each control group this process is in allows, rounded up."""
    for folder in _groups(root, "cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        words = _words(folder / "cpu.max")
        if len(words) == 2 and all(word.isdigit() for word in words):
            quota, period = int(words[0]), int(words[1])
        if quota and period:
            yield math.ceil(quota / period)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups of this process for a controller, in version 1 and 2, each with those above it.

    Inside a container the path may be that of the machine outside, which is not to be seen: then only the top is.
    """
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys" / "fs" / "cgroup" / (controller if controllers else "")
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _number(file: Path) -> int | None:
    """The number above 0 that a file holds, None without one: "max" and -1 mean that there is no limit."""
    words = _words(file)
    return int(words[0]) if len(words) == 1 and words[0].isdigit() and int(words[0]) else None


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file) for word in line.split()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []
