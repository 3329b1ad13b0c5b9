"""The spike, a step function with a surrogate derivative: one operation to torch.func and to any tracer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Tracers such as make_fx look through an autograd.Function and would keep its forward pass alone, a step without a
# derivative. This operator stays one node of their graphs and carries the slope of the surrogate with it.
torch.library.define("weightspace::spike", "(Tensor x, float slope) -> Tensor")


@torch.library.impl("weightspace::spike", "CompositeExplicitAutograd")
def _heaviside(x: Tensor, slope: float) -> Tensor:
    return (x > 0).to(x.dtype)


SPIKE = torch.ops.weightspace.spike.default
"""The operator as it stands in traced graphs, with x and the slope as its arguments."""


def spike(x: Tensor, slope: float) -> Tensor:
    """1 where x is above 0, else 0 (SuperSpike; Zenke and Ganguli, Neural Computation 2018, arXiv 1705.11146).

    Every derivative, forward and reverse, is the surrogate 1 / (1 + slope |x|)^2 of a fast sigmoid in place of the true
    one, which is 0 wherever it exists.
    """
    result: Tensor = _Spike.apply(x, slope)  # type: ignore[no-untyped-call]  # torch gives `apply` no types
    return result


def surrogate(x: Tensor, slope: float) -> Tensor:
    """What stands for the derivative of the spike at x."""
    return (1 + slope * x.abs()).square().reciprocal()


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slope: float) -> Tensor:
        result: Tensor = SPIKE(x, slope)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.slope = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * surrogate(x, ctx.slope), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * surrogate(x, ctx.slope)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, slope: float) -> tuple[Tensor, int | None]:
        # Elements do not meet, so a mapped axis is one more axis.
        return spike(x, slope), in_dims[0]
