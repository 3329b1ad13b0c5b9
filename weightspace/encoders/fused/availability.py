"""Whether the rounds of message passing can be computed in C, and if not, why."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from weightspace.encoders.fused.stack import Widths, compiled
from weightspace.rollout.native.engine.compiler import NoNative

logger = logging.getLogger(__name__)

MAX_WIDTH = 128
"""Widest edge states and products whose C is compiled: their sizes are part of it."""
MAX_NODES = 512
"""Most nodes of a model: beyond, its fields leave the cache, and torch is as fast."""


def why_not(widths: Widths, data: Sequence[Tensor], weight: Tensor) -> str | None:
    """Why models with this data are left to torch, None if they are not.

    `data` are models' weights on edges (models, node, node, channel) and on nodes, and which connections are present;
    `weight` is one of the encoder.
    """
    for tensor in (*data, weight):
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return f"numbers are {tensor.dtype} on {tensor.device.type}, not {torch.float32} on cpu"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives are asked for"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in data):
        return "gradients of models' weights are asked for"
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return "it is transformed by torch.func or compiled"
    if torch.is_autocast_enabled("cpu"):
        return "automatic mixed precision is on"
    if max(widths.edge, widths.product) > MAX_WIDTH or data[0].shape[1] > MAX_NODES:
        return f"there are more than {MAX_WIDTH} channels or {MAX_NODES} nodes"
    return _uncompiled(widths)


@functools.cache
def _uncompiled(widths: Widths) -> str | None:
    """Why there is no compiled library, None if there is one; said once in a warning."""
    try:
        compiled(widths)
    except NoNative as error:
        logger.warning("Message passing is computed by torch, not natively: %s.", error)
        return str(error)
    return None
