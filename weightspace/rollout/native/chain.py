"""Norms of products of Jacobians, natively."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weightspace.rollout.native.compiler import library

INT, POINTER = ctypes.c_int64, ctypes.c_void_p


def chain_library() -> ctypes.CDLL:
    """The compiled chain.c, for float64; NoNative if it cannot be had."""
    return library("chain.c", "REAL=double", "REAL_IS_DOUBLE=1", "LANES=16")


def native_log_norms(jacobians: Tensor, max_lag: int) -> Tensor:
    """Mean over starts and lanes of log ||J(t+k-1) ... J(t)||_F, (models, lag), of float64 Jacobians.

    Jacobians are (models, time, lane, to, from).
    """
    from_to = jacobians.transpose(-1, -2).contiguous()
    models, time, lanes, size = from_to.shape[:4]
    own = chain_library()
    own.chain_workspace.restype = INT
    workspace = torch.empty(own.chain_workspace(INT(time), INT(size)) + 8, dtype=torch.float64)
    start = -(-workspace.data_ptr() // 64) * 64
    norms = torch.empty(models, max_lag, dtype=torch.float64)
    sizes = (INT(number) for number in (models, time, lanes, size, max_lag))
    own.log_norms(*sizes, POINTER(from_to.data_ptr()), POINTER(norms.data_ptr()), POINTER(start))
    return norms
