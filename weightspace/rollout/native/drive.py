"""Driven trajectories measured natively: states, tangent growth, mean Jacobians and norms of their products."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.native.derive.tangent import with_jacobian, with_tangents
from weightspace.rollout.native.engine.compiler import library
from weightspace.rollout.native.engine.encoded import Engine, Wanted, traced
from weightspace.rollout.native.engine.encoder import num_instructions
from weightspace.rollout.native.engine.job import INT, POINTER, Call
from weightspace.rollout.native.engine.threads import at_once
from weightspace.rollout.native.forward import _call
from weightspace.rollout.native.function import first_states
from weightspace.rollout.results import Measured
from weightspace.spec import Params, State

LANES = 32
_NUMBERS = ("plain", "warm_up", "aligning", "window", "jacobians", "size")
_ARRAYS = ("visited", "growth", "covariance", "mean_jacobian", "log_norms")


class _Drive(ctypes.Structure):
    _fields_ = [*((name, INT) for name in _NUMBERS), *((name, POINTER) for name in _ARRAYS)]


@dataclass(frozen=True)
class Steps:
    """Numbers of steps of a driven trajectory: without tangent vectors, with them, measured, and with Jacobians."""

    warm_up: int
    aligning: int
    window: int
    jacobians: int

    @property
    def total(self) -> int:
        """Number of all steps."""
        return self.warm_up + self.aligning + self.window


def drive_library(dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled drive.c for one dtype; NoNative if it cannot be had."""
    is_double = dtype == torch.float64
    real = "double" if is_double else "float"
    return library("drive.c", f"REAL={real}", f"REAL_IS_DOUBLE={int(is_double)}", f"LANES={LANES}")


@functools.lru_cache(maxsize=256)
def _engine(family: Family, dtype: torch.dtype, jacobian: bool) -> Engine:
    """The engine of a family's states and one tangent vector, with the Jacobian of each step as output, if wanted."""
    plain = traced(family, dtype)
    builder = plain.builder.copy()
    program = with_tangents(plain.program, builder, 1)
    if jacobian:
        turned = with_jacobian(plain.program, builder)
        program = dataclasses.replace(program, rows=builder.rows, output=turned.output, readout=turned.readout)
    engine = Engine(dataclasses.replace(plain, program=program, builder=builder), dtype, LANES, Wanted())
    engine.library = drive_library(dtype)
    return engine


def native_drive(
    family: Family,
    params: Params,
    x: Tensor,
    start: Tensor,
    noise: Mapping[str, Tensor],
    tangent: State,
    steps: Steps,
    *,
    want_states: bool = False,
) -> Measured:
    """Drive models by inputs (models, time, lane, input), LANES lanes, from their initial states.

    `tangent` (models, lane, axis) is of length 1 and joins in after the warm-up, at every step scaled to 1 again.
    """
    if tuple(x.shape[1:3]) != (steps.total, LANES):
        raise ValueError(f"A drive takes {steps.total} steps of {LANES} lanes; inputs have {tuple(x.shape[1:3])}.")
    state = first_states(family, params, start, x.dtype)
    names = list(family.spec.states)
    call = _call(family, params, x, noise, [state[name] for name in names] + [tangent[name] for name in names])
    models, size = len(x), family.spec.state_size
    measured = Measured(
        growth=x.new_empty(models, steps.window, LANES),
        covariance=torch.empty(models, size, size, dtype=torch.float64),
        mean_jacobian=torch.empty(models, size, size, dtype=torch.float64),
        log_norms=torch.empty(models, steps.jacobians, dtype=torch.float64),
        visited=x.new_empty(models, steps.window, LANES, size) if want_states else None,
    )
    drive = _Drive(num_instructions(traced(family, x.dtype).program.step), *dataclasses.astuple(steps), size)
    for name in _ARRAYS:
        tensor = getattr(measured, name)
        setattr(drive, name, None if tensor is None else tensor.data_ptr())
    _run(_engine(family, x.dtype, steps.jacobians > 0), call, drive, torch.get_num_threads())
    return dataclasses.replace(measured, mean_jacobian=measured.mean_jacobian.transpose(1, 2))


def _run(engine: Engine, call: Call, drive: _Drive, threads: int) -> None:
    """Run the job, with models distributed among threads."""
    engine.refuse_misfits(call)
    work = partial(_models, engine, call, drive, INT(0))
    at_once([work] * max(1, min(threads, call.models)))


def _models(engine: Engine, call: Call, drive: _Drive, next_model: Any) -> None:
    """Work of one thread: the models that it takes from a shared counter."""
    job, kept = engine.job(call)
    sizes = []
    for size_of, given in ((engine.library.workspace_size, job), (engine.library.drive_room, drive)):
        size_of.restype = INT
        sizes.append(size_of(ctypes.byref(given)))
    rooms = [torch.empty(size + 64, dtype=engine.dtype) for size in sizes]
    starts = [POINTER(-(-room.data_ptr() // 64) * 64) for room in rooms]
    engine.library.drive_models(ctypes.byref(job), ctypes.byref(drive), ctypes.byref(next_model), *starts)
    del kept
