"""Calls of the engine: its `Job`, field by field, and the data of one call."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOSSES = {"given": 0, "cross_entropy": 1, "squared_error": 2}

POINTER, INT = ctypes.c_void_p, ctypes.c_int64
_FIELDS: list[tuple[str, Any]] = [
    *((name, INT) for name in ("num_step", "num_readout", "num_readout_back", "num_step_back", "num_first_back")),
    *((name, INT) for name in ("num_last_back_at", "num_deferring_step_back", "num_deferred_readout_back")),
    *((name, POINTER) for name in ("step", "readout", "readout_back", "step_back", "first_back", "last_back")),
    *((name, POINTER) for name in ("last_back_at", "deferring_step_back", "deferred_readout_back")),
    *((name, POINTER) for name in ("terms", "addends", "constants")),
    *((name, INT) for name in ("num_matrices", "num_vectors", "num_jobs")),
    *((name, POINTER) for name in ("matrices", "vectors", "pieces", "jobs")),
    *((name, INT) for name in ("record_rows", "input_rows", "ring_rows", "carry_rows", "scratch_rows", "sums_rows")),
    ("carried_in_ring", INT),
    *((name, INT) for name in ("output_rows", "ring_steps", "packed_size", "vector_size", "gradient_size")),
    *((name, INT) for name in ("num_prologue", "num_prologue_back", "has_prologue", "stored", "params_rows")),
    *((name, POINTER) for name in ("prologue", "prologue_back", "tables")),
    *((name, POINTER) for name in ("param_at", "param_gradient_at")),
    *((name, POINTER) for name in ("result_at", "result_gradient_at", "result_rows")),
    *((name, POINTER) for name in ("tensor_size", "direct_at")),
    *((name, INT) for name in ("num_states", "num_inputs")),
    *((name, POINTER) for name in ("state_at", "state_rows", "carry_at", "next_carry_at", "input_at", "input_size")),
    ("output_at", INT * 2),
    ("output_gradient_at", INT * 2),
    *((name, INT) for name in ("models", "time", "batch", "tensors")),
    *((name, POINTER) for name in ("tensor", "tensor_stride", "input", "input_stride", "initial", "initial_stride")),
    *((name, POINTER) for name in ("outputs", "states")),
    ("shown_steps", INT),
    *((name, INT) for name in ("loss_kind", "scored", "classes", "want_gradients")),
    *((name, POINTER) for name in ("target_class", "target_value", "weight", "losses", "verdicts")),
    ("output_gradient", POINTER),
    *((name, POINTER) for name in ("state_gradient", "gradient", "gradient_stride")),
    *((name, POINTER) for name in ("input_gradient", "initial_gradient")),
    *((name, INT) for name in ("updates", "move_room")),
    *((name, POINTER) for name in ("learning", "move", "how")),
]


@functools.cache
def array_of(kind: Any, count: int) -> Any:
    """Type of arrays of `count` items, kept: to make a type takes longer than to fill an array."""
    return kind * count


class Job(ctypes.Structure):
    """The engine's `Job`, field by field."""

    _fields_ = _FIELDS


@dataclass(frozen=True)
class Moves:
    """The optimiser callback that C calls after the gradients of each update of a model."""

    updates: int
    learning: Tensor
    """Mask of the models that take part (models,), bool."""
    move: int
    """Address of the function; see the engine's `Job` for its arguments."""
    how: int
    """Address of its first argument."""
    room: int
    """Numbers of workspace that it needs."""


@dataclass
class Call:
    """The data of one call; every tensor leads with models and is dense after that."""

    models: int
    time: int
    batch: int
    tensors: Sequence[Tensor]
    inputs: Sequence[Tensor]
    initial: Sequence[Tensor]
    outputs: Tensor | None = None
    states: Sequence[Tensor] | None = None
    shown_steps: int | None = None
    """Number of last steps whose outputs and states are written; None: all."""
    loss: str = "given"
    classes: int = 1
    target: Tensor | None = None
    weight: Tensor | None = None
    """Weight of each scored step of each update, (updates, models, scored)."""
    losses: Tensor | None = None
    verdicts: Tensor | None = None
    """Scores of the answers at the shown steps, (models, 4), float64: see answers.h."""
    output_gradient: Tensor | None = None
    state_gradient: Sequence[Tensor | None] | None = None
    gradients: Sequence[Tensor | None] | None = None
    input_gradient: Sequence[Tensor | None] | None = None
    initial_gradient: Sequence[Tensor | None] | None = None
    moves: Moves | None = None
    """Updates to make by the gradients, which are then not written; `batch` is that of all updates together."""
    moved: Sequence[bool] = ()
    """Tensors that are updated."""

    @property
    def batch_of_one(self) -> int:
        """Number of sequences of one update."""
        return self.batch if self.moves is None else self.batch // self.moves.updates

    def apart(self) -> Call:
        """The same call with sums of its own, for some of the sequences."""
        gradients = (
            None if self.gradients is None else [None if g is None else torch.empty_like(g) for g in self.gradients]
        )
        losses = None if self.losses is None else torch.empty_like(self.losses)
        verdicts = None if self.verdicts is None else torch.zeros_like(self.verdicts)
        return dataclasses.replace(self, gradients=gradients, losses=losses, verdicts=verdicts)

    def add(self, parts: Sequence[Call]) -> None:
        """Add up the sums of the parts, in their order."""
        for number, part in enumerate(parts):
            sums = [(self.losses, part.losses), (self.verdicts, part.verdicts)]
            sums += zip(self.gradients or [], part.gradients or [], strict=True)
            for total, more in sums:
                if total is not None and more is not None:
                    total.copy_(total + more if number else more)

    def fill(self, job: Job) -> list[Any]:
        """Write the data into a job; the returned objects must live as long as the job."""
        job.models, job.time, job.batch = self.models, self.time, self.batch
        job.loss_kind, job.classes = LOSSES[self.loss], self.classes
        kept: list[Any] = []
        for name, tensors in (("tensor", self.tensors), ("input", self.inputs), ("initial", self.initial)):
            kept += [_table(job, name, tensors), _strides(job, f"{name}_stride", tensors)]
        for name, optional in (
            ("states", self.states),
            ("state_gradient", self.state_gradient),
            ("gradient", self.gradients),
            ("input_gradient", self.input_gradient),
            ("initial_gradient", self.initial_gradient),
        ):
            if optional is not None:
                kept.append(_table(job, name, optional))
        job.shown_steps = self.time if self.shown_steps is None else self.shown_steps
        if self.gradients is not None:
            kept.append(_sizes(job, "gradient_stride", self.gradients))
        if self.moves is not None:
            kept.append(self._fill_moves(job, self.moves))
        for name, single in (
            ("outputs", self.outputs),
            ("weight", self.weight),
            ("losses", self.losses),
            ("verdicts", self.verdicts),
            ("output_gradient", self.output_gradient),
        ):
            setattr(job, name, None if single is None else single.data_ptr())
        if self.target is not None:
            job.scored = self.target.shape[1]
            setattr(job, "target_class" if self.loss == "cross_entropy" else "target_value", self.target.data_ptr())
        return kept

    def _fill_moves(self, job: Job, moves: Moves) -> Any:
        job.updates, job.move_room, job.move, job.how = moves.updates, moves.room, moves.move, moves.how
        job.learning = moves.learning.data_ptr()
        pairs = zip(self.tensors, self.moved, strict=True)
        sizes = array_of(INT, job.tensors)(*(tensor[0].numel() if moves else 0 for tensor, moves in pairs))
        job.gradient_stride = ctypes.addressof(sizes)
        return sizes


def _table(job: Job, name: str, tensors: Sequence[Tensor | None]) -> Any:
    table = array_of(POINTER, len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
    setattr(job, name, ctypes.addressof(table))
    return table


def _sizes(job: Job, name: str, tensors: Sequence[Tensor | None]) -> Any:
    """Numbers of each dense tensor that belong to one model."""
    table = array_of(INT, job.tensors)(*(0 if t is None else t[0].numel() for t in tensors))
    setattr(job, name, ctypes.addressof(table))
    return table


def _strides(job: Job, name: str, tensors: Sequence[Tensor | None]) -> Any:
    table = array_of(INT, len(tensors))(*(0 if t is None else t.stride(0) for t in tensors))
    setattr(job, name, ctypes.addressof(table))
    return table
