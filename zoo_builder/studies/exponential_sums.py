"""Sums of exponentials fitted to a memory, and how far they move where the parameters of their rates do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LAGS = 100
"""A memory is compared at the lags 1 to LAGS."""
SLOWEST, FASTEST = 1 / 200, 4.0
"""Ends of the rates, which are evenly spaced in logarithm."""
DIRECTIONS = 30
"""Random directions of which the worst counts."""
Rates = Callable[[Tensor], Tensor]
"""Rates r = g(w) of parameters w of any shape."""


def lags() -> Tensor:
    """The lags (lag,), float64."""
    return torch.arange(1, LAGS + 1, dtype=torch.float64)


def spaced_rates(width: int) -> Tensor:
    """`width` rates from the slowest to the fastest (rate,), float64."""
    ratio = torch.linspace(0, 1, width, dtype=torch.float64)
    spaced: Tensor = SLOWEST * (FASTEST / SLOWEST) ** ratio
    return spaced


def fitted(rates: Tensor, target: Tensor) -> Tensor:
    """Coefficients c (rate,) of the least-squares fit of sum_i c_i exp(-r_i t) to target (lag,)."""
    exponentials = torch.exp(-lags()[:, None] * rates)
    coefficients: Tensor = torch.linalg.lstsq(exponentials, target[:, None], driver="gelsd").solution[:, 0]
    return coefficients


def directions(width: int, generator: torch.Generator) -> Tensor:
    """Random directions (direction, rate) of length 1, float64."""
    drawn = torch.randn(DIRECTIONS, width, dtype=torch.float64, generator=generator)
    normed: Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return normed


def worst_error(rates_of: Rates, w: Tensor, coefficients: Tensor, target: Tensor, moves: Tensor) -> float:
    """E(beta), the largest of sum_t |sum_i c_i exp(-g(w_i + m_i) t) - target_t| over moves m (move, rate) of w."""
    rates = rates_of(w + moves)
    memory = torch.exp(-lags()[None, :, None] * rates[:, None]) @ coefficients
    return float((memory - target).abs().sum(1).max())
