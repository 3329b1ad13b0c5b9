"""Sums and diagonals of edge fields as autograd functions that pass over memory once, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Sums(torch.autograd.Function):
    """Sums of edge states (models, to, from, channel) over sources, over targets, and, if asked, their diagonal.

    Shapes: (models, to, channel), (models, from, channel), (models, axis, channel) or None.
    """

    @staticmethod
    def forward(ctx: Any, e: Tensor, with_diagonal: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.shape = e.shape
        diagonal = e.diagonal(dim1=1, dim2=2).mT.contiguous() if with_diagonal else None
        return e.sum(2), e.sum(1), diagonal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        over_sources, over_targets, diagonal = gradients
        assert over_sources is not None
        assert over_targets is not None
        # One new field instead of three that autograd would add up.
        g = (over_sources[:, :, None] + over_targets[:, None]).expand(ctx.shape)
        if diagonal is not None:
            g.diagonal(dim1=1, dim2=2).add_(diagonal.mT)
        return g, None


class AddDiagonal(torch.autograd.Function):
    """Edge states (models, axis, axis, channel) with node values (models, axis, channel) added on the diagonal, in place.

    As a view that is written to, a diagonal would make autograd copy the whole gradient.
    """

    @staticmethod
    def forward(ctx: Any, e: Tensor, values: Tensor) -> Tensor:
        e.diagonal(dim1=1, dim2=2).add_(values.mT)
        ctx.mark_dirty(e)
        return e

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = gradients
        return g, g.diagonal(dim1=1, dim2=2).mT.contiguous()


def sums(e: Tensor, *, diagonal: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums over sources and over targets of edge states, and their diagonal or None."""
    result: tuple[Tensor, Tensor, Tensor | None] = Sums.apply(e, diagonal)
    return result


def add_diagonal_(e: Tensor, values: Tensor) -> Tensor:
    """Edge states with node values added on their diagonal, in place."""
    result: Tensor = AddDiagonal.apply(e, values)
    return result
