"""Means of states over nodes of each kind and edges of each type, their scales, and the head that reads them."""

from __future__ import annotations

from typing import Any, ClassVar

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


class PooledScale(nn.Module):
    """Invariants less their mean and over their spread among training models, as buffers: (v - mean) / scale.

    A spread below `floor` of the size of an invariant counts as that much, or rounding would be blown up. Files written
    before there were these buffers lack them, and are read with mean 0 and scale 1.

    Shapes: (models, width) -> the same.
    """

    absent_from_older_files: ClassVar[frozenset[str]] = frozenset({"mean", "scale"})

    def __init__(self, width: int, floor: float = 0.05) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.floor = floor

    mean: Tensor
    scale: Tensor

    def fit(self, invariants: Tensor) -> None:
        """Set mean and scale from the invariants (models, width) of training models."""
        values = invariants.double()
        size = values.square().mean(0).sqrt()
        spread = torch.maximum(values.std(0, correction=0), self.floor * size)
        self.mean.copy_(values.mean(0))
        self.scale.copy_(torch.where(spread > 0, spread, 1.0))

    def forward(self, invariants: Tensor) -> Tensor:
        """Scaled invariants."""
        return (invariants - self.mean) / self.scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, value in (("mean", torch.zeros_like(self.mean)), ("scale", torch.ones_like(self.scale))):
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)
