"""Availability of native rollouts on this machine, with the reason where there are none."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.native.drive import drive_library
from weightspace.rollout.native.engine import compiler
from weightspace.rollout.native.engine.compiler import NoNative
from weightspace.rollout.native.engine.encoded import LANES, engine_library, traced
from weightspace.rollout.native.matrices import matrices_library
from weightspace.rollout.native.trace.program import Untraceable

logger = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.float64)


def why_not_here() -> str | None:
    """Reason why nothing runs natively on this machine; None if the engine is there, compiled now if need be."""

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
    """Whether measurements along native rollouts are available here; where not, one warning gives the reason."""
    reason = why_not_here()
    if reason is not None:
        logger.warning("Labels are measured by torch, not natively: %s.", reason)
    return reason is None


def compiler_version() -> str:
    """Version line of the C compiler; NoNative if there is none."""
    return compiler.version()


def why_not(family: Family, dtype: torch.dtype = torch.float32) -> str | None:
    """Reason why this family cannot be run natively on this machine, None if it can."""

    try:
        engine_library(dtype, LANES[0])
        traced(family, dtype)
    except (NoNative, Untraceable) as error:
        return str(error)
    return None


def usable(family: Family, x: Tensor) -> bool:
    """Whether inputs like x can be run natively; where not, one warning gives the reason."""
    return unusable(family, x) is None


def unusable(family: Family, x: Tensor) -> str | None:
    """Reason why inputs like x cannot be run natively, None if they can; one warning for each family that cannot."""
    if x.device.type != "cpu" or x.dtype not in DTYPES:
        return f"inputs are {x.dtype} on {x.device.type}"
    return _reason(family, x.dtype)


@functools.lru_cache(maxsize=1024)
def _reason(family: Family, dtype: torch.dtype) -> str | None:
    reason = why_not(family, dtype)
    if reason is not None:
        _warn(type(family).__name__, reason)
    return reason


@functools.lru_cache(maxsize=256)
def _warn(name: str, reason: str) -> None:
    logger.warning("%s is rolled out by torch, not natively: %s.", name, reason)
