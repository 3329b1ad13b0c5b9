"""The update of StackedAdamW in one pass over memory, in C."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightspace.rollout.native.compiler import library
from weightspace.rollout.native.job import INT, POINTER, array_of
from weightspace.rollout.native.threads import at_once

SOURCE = str(Path(__file__).parent / "adamw.c")
WORTH_A_THREAD = 100_000
"""Numbers of all rows for each of several threads; to wake one for fewer takes longer."""
_DOUBLES = ("losses", "learning_rate", "weight_decay", "clip", "rate")


class _Update(ctypes.Structure):
    _fields_ = [
        *((name, INT) for name in ("models", "parameters", "tensors")),
        *((name, POINTER) for name in ("size", "gradient", "lower", *_DOUBLES, "learning")),
        *((name, POINTER) for name in ("row", "first", "second", "fails")),
        *((name, ctypes.c_double) for name in ("number_first", "root_second", "beta1", "beta2", "epsilon")),
    ]


def fused_update(
    row: Tensor,
    first: Tensor,
    second: Tensor,
    learning: Tensor,
    gradients: Sequence[Tensor],
    lower: Tensor | None,
    columns: dict[str, Tensor],
    numbers: dict[str, float],
) -> Tensor:
    """Move the rows (models, parameters), float32, and moments of models that are `learning` in place.

    Gradients (models, ...) are those of the tensors that lie side by side in a row; `columns` (models,) and `numbers`
    are the fields of that name in adamw.c. Returns which models learned until now and cannot go on, (models,), bool.
    NoNative if there is no compiler.
    """
    models, parameters = row.shape
    own = [gradient.contiguous() for gradient in gradients]
    sizes = array_of(INT, len(own))(*(gradient.numel() // models for gradient in own))
    pointers = array_of(POINTER, len(own))(*(gradient.data_ptr() for gradient in own))
    fails, next_model, update = torch.zeros(models, dtype=torch.bool), INT(0), library(SOURCE).update
    wide = {name: _wide(columns[name], models) for name in _DOUBLES}
    call = _Update(models, parameters, len(own), **numbers)
    call.size, call.gradient = ctypes.addressof(sizes), ctypes.addressof(pointers)
    call.lower = None if lower is None else lower.data_ptr()
    for name, tensor in (*wide.items(), ("learning", learning), ("row", row), ("first", first), ("second", second)):
        assert tensor.is_contiguous()
        setattr(call, name, tensor.data_ptr())
    call.fails = fails.data_ptr()

    def some() -> None:
        room = row.new_empty(3 * parameters)
        update(ctypes.byref(call), ctypes.byref(next_model), POINTER(room.data_ptr()))

    at_once([some] * max(1, min(torch.get_num_threads(), models, row.numel() // WORTH_A_THREAD)))
    return fails


def _wide(column: Tensor, models: int) -> Tensor:
    """One number for each model, (models,), float64, in one piece."""
    if column.dtype == torch.float64 and column.numel() == models and column.is_contiguous():
        return column
    return column.to(torch.float64).flatten().expand(models).contiguous()
