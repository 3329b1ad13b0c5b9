"""Codes of places on ordered axes: inputs and outputs keep an identity that units do not have."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn


def num_codes(max_ends: int) -> int:
    """Number of codes of a place: a sine and a cosine of each wave of length 2, 4, ..., and a constant."""
    return 2 * max(1, math.ceil(math.log2(max_ends))) + 1


def codes(size: int, number: int, like: Tensor) -> Tensor:
    """Codes (position, code) of the places of an ordered axis: waves that tell as many apart as the longest has."""
    return _codes(size, number, like.dtype, like.device)


@lru_cache(maxsize=256)
def _codes(size: int, number: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept for calls that record gradients, too, whatever the mode of the first one is.
    with torch.inference_mode(False):
        place = torch.arange(size, device=device, dtype=torch.float64)[:, None]
        return waves(place, number).to(dtype)


def waves(place: Tensor, number: int) -> Tensor:
    """Codes (position, code) of places (position, 1), in their dtype."""
    angle = place * torch.pi / 2.0 ** torch.arange((number - 1) // 2, device=place.device)
    return torch.cat([torch.sin(angle), torch.cos(angle), torch.ones_like(angle[:, :1])], dim=1)


class Patterns(nn.Module):
    """Learned functions of the place on an ordered axis, linear in its codes and 1 everywhere on average at first.

    Shapes: size of the axis -> (position, width).
    """

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.number = number
        start = torch.randn(number, width) * (2.0 / number) ** 0.5
        start[-1] = 1.0
        self.weight = nn.Parameter(start)

    def forward(self, size: int) -> Tensor:
        """The functions (position, width) at all places of an axis."""
        return codes(size, self.number, self.weight) @ self.weight
