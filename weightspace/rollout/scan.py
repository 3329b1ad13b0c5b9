"""Linear recurrences solved in parallel over time, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def solve(factors: Tensor, drive: Tensor) -> Tensor:
    """y(t) = A(t) y(t-1) + b(t) with y(-1) = 0, (models, time, ..., state), by odd-even reduction.

    Factors A are matrices (models, time, ..., to, from), or diagonals (models, time, ..., state) of the shape of b.
    Pairs of steps are joined, (A2, b2) o (A1, b1) = (A2 A1, A2 b1 + b2), until one is left: log2(time) rounds of
    operations (Blelloch, Prefix sums and their applications, 1990). Differentiable in b alone, whose gradients solve
    the recurrence backward in time: g(t) = A(t+1)^T g(t+1) + dL/dy(t).
    """
    solved: Tensor = _Solution.apply(factors.detach(), drive)  # type: ignore[no-untyped-call]
    return solved


class _Solution(torch.autograd.Function):
    """The solution of a linear recurrence as a function of its drive."""

    @staticmethod
    def forward(factors: Tensor, drive: Tensor) -> Tensor:
        return _reduced(factors, drive)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (factors,) = ctx.saved_tensors
        turned = factors if factors.dim() == gradient.dim() else factors.transpose(-1, -2)
        # The factor between two steps belongs to the later of them; none leads beyond the last.
        later = torch.cat([turned[:, 1:], torch.zeros_like(turned[:, :1])], dim=1)
        return None, _reduced(later.flip(1), gradient.flip(1)).flip(1)


def _reduced(factors: Tensor, drive: Tensor) -> Tensor:
    """The solution (models, time, ..., state), half as many pairs of steps in each round."""
    time = drive.shape[1]
    if time == 1:
        return drive
    even = time - time % 2
    first, second = factors[:, 0:even:2], factors[:, 1:even:2]
    joined = _finite(second * first if factors.dim() == drive.dim() else second @ first)
    odd = _reduced(joined, _moved(second, drive[:, 0:even:2]) + drive[:, 1:even:2])
    solved = torch.empty_like(drive)
    solved[:, 1::2] = odd
    solved[:, 0] = drive[:, 0]
    if time > 2:
        before = odd[:, : (time - 1) // 2]
        solved[:, 2::2] = _moved(factors[:, 2::2], before) + drive[:, 2::2]
    return solved


def _moved(factors: Tensor, values: Tensor) -> Tensor:
    """Factors times values (..., state)."""
    return factors * values if factors.dim() == values.dim() else (factors @ values[..., None])[..., 0]


def _finite(factors: Tensor) -> Tensor:
    """Products kept finite, so that a deviation of exactly 0 stays 0 however unstable the steps are."""
    largest = torch.finfo(factors.dtype).max ** 0.5
    return torch.nan_to_num(factors, nan=0.0, posinf=largest, neginf=-largest).clamp(-largest, largest)
