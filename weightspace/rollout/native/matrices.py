"""Singular values and spectral radii of many small matrices, natively."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weightspace.rollout.native.engine.compiler import library
from weightspace.rollout.native.engine.job import INT, POINTER


def matrices_library() -> ctypes.CDLL:
    """The compiled matrices.c; NoNative if it cannot be had."""
    return library("matrices.c", "REAL=double", "REAL_IS_DOUBLE=1", "LANES=16")


def native_singular_values(matrices: Tensor) -> Tensor:
    """Singular values (models, value), largest first, of finite matrices (models, row, col), float64.

    Each is right to some 1e-14 of the largest one, and those of matrices whose columns differ in scale alone to that
    share of themselves. A model's own do not depend on the others.
    """
    tall = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.transpose(1, 2)
    models, rows, cols = tall.shape
    values = torch.empty(models, cols, dtype=torch.float64)
    matrices_library().singular_values(INT(models), INT(rows), INT(cols), *_data(tall, values))
    return values.sort(dim=1, descending=True).values


def native_spectral_radii(matrices: Tensor) -> Tensor:
    """The largest absolute eigenvalue (models,) of finite matrices (models, n, n), float64, each on its own."""
    radii = torch.empty(len(matrices), dtype=torch.float64)
    matrices_library().spectral_radii(INT(len(matrices)), INT(matrices.shape[1]), *_data(matrices, radii))
    return radii


def _data(matrices: Tensor, results: Tensor) -> tuple[object, ...]:
    """Arguments of both functions after the sizes; the workspace must live as long as these."""
    assert matrices.dtype == torch.float64
    size_of = matrices_library().matrices_workspace
    size_of.restype = INT
    workspace = torch.empty(size_of(*map(INT, matrices.shape[1:])) + 8, dtype=torch.float64)
    start = POINTER(-(-workspace.data_ptr() // 64) * 64)
    start.kept = workspace  # type: ignore[attr-defined]
    strides = (INT * 3)(*matrices.stride())
    return POINTER(matrices.data_ptr()), strides, POINTER(results.data_ptr()), start
