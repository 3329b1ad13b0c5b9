"""Functions of edge fields whose gradients pass over memory once, where autograd would add up several fields."""

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
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        over_sources, over_targets, diagonal = gradients
        g = over_sources[:, :, None] + over_targets[:, None]
        if diagonal is not None:
            g.diagonal(dim1=1, dim2=2).add_(diagonal.mT)
        return g, None


class SquareUpdate(torch.autograd.Function):
    """u_ij = e_ij A + e_ji B + p_i + q_j + [i = j] d_i, of edge states between the units of one axis.

    Shapes: e (models, axis, axis, channel), weights [A B] (channel, 2 * channel) or [A] (channel, channel), p, q and d
    (models, axis, channel) -> (models, axis, axis, channel). Without B there is no term of e_ji, and d may be None.
    """

    @staticmethod
    def forward(ctx: Any, e: Tensor, weights: Tensor, p: Tensor, q: Tensor, d: Tensor | None) -> Tensor:
        ctx.save_for_backward(e, weights)
        ctx.with_diagonal, ctx.both = d is not None, weights.shape[1] > e.shape[-1]
        u = e @ weights
        if ctx.both:
            # Both terms lie along sources before the second half is turned: one addition over contiguous memory.
            entry, opposite = u.add_(torch.cat([q, p], dim=-1)[:, None]).chunk(2, dim=-1)
            u = entry + opposite.transpose(1, 2)
        else:
            u.add_(p[:, :, None]).add_(q[:, None])
        if d is not None:
            u.diagonal(dim1=1, dim2=2).add_(d.mT)
        return u

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        e, weights = ctx.saved_tensors
        mixed = torch.cat([g, g.transpose(1, 2)], dim=-1) if ctx.both else g
        flat = mixed.flatten(0, 2)
        of_e = (flat @ weights.T).view_as(e)
        of_weights = e.flatten(0, 2).T @ flat
        diagonal = g.diagonal(dim1=1, dim2=2).mT if ctx.with_diagonal else None
        return of_e, of_weights, g.sum(2), g.sum(1), diagonal


class Moments(torch.autograd.Function):
    """Means and mean squares (models, channel) of edge states (models, to, from, channel)."""

    @staticmethod
    def forward(ctx: Any, e: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(e)
        return e.mean((1, 2)), e.square().mean((1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        (e,) = ctx.saved_tensors
        mean, square = (g[:, None, None] / (e.shape[1] * e.shape[2]) for g in gradients)
        return torch.addcmul(mean, e, square, value=2)


def sums(e: Tensor, *, diagonal: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums over sources and over targets of edge states, and their diagonal or None: see `Sums`."""
    result: tuple[Tensor, Tensor, Tensor | None]
    result = Sums.apply(e, diagonal)  # type: ignore[no-untyped-call]  # torch gives `apply` no types
    return result


def square_update(e: Tensor, weights: Tensor, p: Tensor, q: Tensor, d: Tensor | None) -> Tensor:
    """New edge states between the units of one axis: see `SquareUpdate`."""
    result: Tensor = SquareUpdate.apply(e, weights, p, q, d)  # type: ignore[no-untyped-call]  # torch gives `apply` no types
    return result


def moments(e: Tensor) -> tuple[Tensor, Tensor]:
    """Means and mean squares of edge states: see `Moments`."""
    result: tuple[Tensor, Tensor] = Moments.apply(e)  # type: ignore[no-untyped-call]  # torch gives `apply` no types
    return result
