"""Means of states over the nodes of each kind and the edges of each type, and the head that reads them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS
from weightspace.graph import EDGE_TYPES


def one_hot_kinds(kind: Tensor, like: Tensor) -> Tensor:
    """Node kinds (node, class), one-hot, in the dtype of `like`."""
    return F.one_hot(kind, len(NODE_KINDS)).to(like.dtype)


def one_hot_types(edge_type: Tensor, like: Tensor) -> Tensor:
    """Connection types (..., class), one-hot and 0 where nothing is connected (-1), in the dtype of `like`."""
    return F.one_hot(edge_type + 1, len(EDGE_TYPES) + 1)[..., 1:].to(like.dtype)


def class_means(values: Tensor, classes: Tensor) -> Tensor:
    """Mean values (models, class * channel) of elements (models, element, channel) by class, 0 where there is none.

    `classes` (element, class) are one-hot.
    """
    return torch.matmul((classes / classes.sum(0).clamp(min=1)).T, values).flatten(1)


def read_out(
    inputs: int, hidden: int, outputs: int, *, norm: bool = True, dropout: float | None = None
) -> nn.Sequential:
    """The head of an encoder: a normalisation and dropout, where asked for, and a perceptron with one hidden layer."""
    first: list[nn.Module] = [nn.LayerNorm(inputs)] if norm else []
    first += [] if dropout is None else [nn.Dropout(dropout)]
    return nn.Sequential(*first, nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
