"""Native rollouts: a family's step, traced once, runs in C with the whole time loop of a model in cache."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.native.engine import compiler
from weightspace.rollout.native.engine.compiler import NoNative
from weightspace.rollout.native.trace.program import Untraceable

__all__ = [
    "can_descend_on",
    "compiler_version",
    "descend",
    "descend_on",
    "measures_here",
    "run_native",
    "usable",
    "why_not",
    "why_not_here",
]

logger = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.float64)


def why_not_here() -> str | None:
    """Why nothing can be run natively on this machine, None if the engine is there, compiled now if need be."""
    from weightspace.rollout.native.drive import drive_library
    from weightspace.rollout.native.engine.encoded import LANES, engine_library
    from weightspace.rollout.native.matrices import matrices_library

    try:
        matrices_library()
        for dtype in DTYPES:
            drive_library(dtype)
            for lanes in LANES:
                engine_library(dtype, lanes)
    except NoNative as error:
        return str(error)
    return None


@functools.cache
def measures_here() -> bool:
    """Whether measurements along native rollouts can be had on this machine; where not, one warning says why."""
    reason = why_not_here()
    if reason is not None:
        logger.warning("Labels are measured by torch, not natively: %s.", reason)
    return reason is None


def compiler_version() -> str:
    """What the C compiler says of itself; NoNative if there is none."""
    return compiler.version()


def why_not(family: Family, dtype: torch.dtype = torch.float32) -> str | None:
    """Why this family cannot be run natively on this machine, None if it can."""
    from weightspace.rollout.native.engine.encoded import LANES, engine_library, traced

    try:
        engine_library(dtype, LANES[0])
        traced(family, dtype)
    except (NoNative, Untraceable) as error:
        return str(error)
    return None


def usable(family: Family, x: Tensor) -> bool:
    """Whether inputs like x can be run natively; where not, one warning says why."""
    if x.device.type != "cpu" or x.dtype not in DTYPES:
        return False
    reason = _reason(family, x.dtype)
    return reason is None


@functools.lru_cache(maxsize=1024)
def _reason(family: Family, dtype: torch.dtype) -> str | None:
    reason = why_not(family, dtype)
    if reason is not None:
        _warn(type(family).__name__, reason)
    return reason


@functools.lru_cache(maxsize=256)
def _warn(name: str, reason: str) -> None:
    logger.warning("%s is rolled out by torch, not natively: %s.", name, reason)


from weightspace.rollout.native.descent import can_descend_on, descend, descend_on  # noqa: E402
from weightspace.rollout.native.function import run_native  # noqa: E402
