"""Losses of a cohort and their gradients, for every rollout method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, rollout
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.native import descend, usable
from weightspace.spec import Params


def losses_and_gradients(
    family: Family,
    params: Mapping[str, Tensor],
    trained: Sequence[str],
    x: Tensor,
    start: Tensor,
    loss: Criterion | Callable[[Tensor], Tensor],
    *,
    method: Method = "stacked",
    noise: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Params]:
    """Each model's loss (models,) on inputs (models, time, batch, input), and its gradients (models, ...) by tensor.

    `loss` takes outputs (models, time, batch, output) to losses (models,); declared as a `Criterion`, it becomes part
    of what a native rollout runs. See `rollout` for the rest.
    """
    if method == "native" and isinstance(loss, Criterion) and usable(family, x):
        return descend(family, params, trained, x, start, loss, noise or {})
    leaves = {name: params[name].detach().requires_grad_() for name in trained}
    outputs = rollout(family, {**params, **leaves}, x, start, method=method, noise=noise).outputs
    losses = loss(outputs)
    # A sum: a mean would scale each model's gradient by the number of models.
    gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return losses.detach(), dict(zip(leaves, gradients, strict=True))
