"""Updates of StackedAdamW in C: one by ready gradients, or several of one model after another."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightspace.rollout.native.engine.compiler import library
from weightspace.rollout.native.engine.job import INT, POINTER, Moves, array_of
from weightspace.rollout.native.engine.threads import at_once

SOURCE = str(Path(__file__).parent / "adamw.c")
WORTH_A_THREAD = 100_000
"""Numbers of all rows per thread: to wake a thread for fewer takes longer than the work."""
_COLUMNS = ("learning_rate", "weight_decay", "clip")
_NUMBERS = ("rate", "number_first", "root_second")


class _Updates(ctypes.Structure):
    _fields_ = [
        *((name, INT) for name in ("models", "parameters", "tensors")),
        *((name, POINTER) for name in ("size", "lower", *_COLUMNS, *_NUMBERS, "learning")),
        *((name, POINTER) for name in ("row", "first", "second", "failed")),
        *((name, ctypes.c_double) for name in ("beta1", "beta2", "epsilon")),
    ]


class FusedUpdates:
    """Updates that move rows (models, parameters), float32, and their moments in place, as long as a model learns."""

    def __init__(
        self,
        rows: tuple[Tensor, Tensor, Tensor],
        learning: Tensor,
        sizes: Sequence[int],
        lower: Tensor | None,
        columns: Mapping[str, Tensor],
        numbers: Mapping[str, Tensor],
        constants: Mapping[str, float],
    ) -> None:
        """Prepare updates of `rows` (params and both moments) where models are `learning` (models,), bool.

        `sizes` are those of the tensors that lie side by side in a row; `lower` is the least value of each parameter.
        `columns` (models,), `numbers` (updates,) and among them `rate` (updates, models), float64, and `constants` are
        the fields of that name in adamw.c. NoNative if there is no compiler.
        """
        assert all(row.dtype == torch.float32 for row in rows)
        self._models, self._parameters = rows[0].shape
        self._updates = len(numbers["rate"])
        self.failed = torch.full((self._models,), -1, dtype=torch.int64)
        """Number of the update that failed, among these (models,), -1 where none did."""
        self._library, self._sizes = library(SOURCE), array_of(INT, len(sizes))(*sizes)
        self._c = _Updates(self._models, self._parameters, len(sizes), ctypes.addressof(self._sizes), **constants)
        named = dict(zip(("row", "first", "second"), rows, strict=True)) | {"learning": learning, "failed": self.failed}
        self._kept = {**named, **columns, **numbers, **({} if lower is None else {"lower": lower})}
        for name, tensor in self._kept.items():
            assert tensor.is_contiguous()
            setattr(self._c, name, tensor.data_ptr())

    def moves(self) -> Moves:
        """The callback by which the engine makes the updates; this object must live until it has."""
        move = ctypes.cast(self._library.move, POINTER).value or 0
        return Moves(self._updates, self._kept["learning"], move, ctypes.addressof(self._c), 3 * self._parameters)

    def make(self, losses: Tensor, gradients: Sequence[Tensor]) -> None:
        """Make the only update by losses (models,) and the gradients (models, ...) of the tensors of a row."""
        dense, wide = [gradient.contiguous() for gradient in gradients], losses.to(torch.float64).contiguous()
        pointers = array_of(POINTER, len(dense))(*(gradient.data_ptr() for gradient in dense))
        next_model, arguments = INT(0), (POINTER(wide.data_ptr()), pointers)

        def work() -> None:
            room = torch.empty(4 * self._parameters)
            self._library.update(ctypes.byref(self._c), *arguments, ctypes.byref(next_model), POINTER(room.data_ptr()))

        worth = self._models * self._parameters // WORTH_A_THREAD
        at_once([work] * max(1, min(torch.get_num_threads(), self._models, worth)))
