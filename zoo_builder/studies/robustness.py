"""Networks disturbed after training: a tensor is perturbed or one hidden unit removed, and accuracy asked again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Streams
from weightspace.spec import Params

SIZES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Norms of perturbations, in parts of the norm of the tensor."""
UNITS = 8
"""Units removed, one at a time, of those with the shortest and of those with the longest time constants."""
Ask = Callable[[Params], Tensor]
"""Function from params (models, ...) to accuracies (models,)."""


def robustness(family: Family, params: Params, ask: Ask, streams: Streams) -> dict[str, Tensor]:
    """Accuracies of disturbed networks of a family with `weight_hh` and `tau`.

    `perturbed_weight_hh` and `perturbed_tau` (models, size): with this tensor perturbed, by SIZES; `without_shortest`
    and `without_longest` (models, unit): without one of the UNITS units of the shortest or longest time constants.
    """
    curves = {}
    for name, signed in (("weight_hh", True), ("tau", False)):
        asked = [ask(perturbed(params, name, size, streams, signed=signed)) for size in SIZES]
        curves[f"perturbed_{name}"] = torch.stack(asked, 1)
    order = params["tau"].argsort(1)
    for name, units in (("shortest", order[:, :UNITS]), ("longest", order.flip(1)[:, :UNITS])):
        curves[f"without_{name}"] = torch.stack([ask(without_unit(family, params, unit)) for unit in units.T], 1)
    return curves


def perturbed(params: Params, name: str, size: float, streams: Streams, *, signed: bool = True) -> Params:
    """Params with size * ||T|| / ||D|| * D added to the tensor T (models, ...) called `name`, norms of each model.

    D is standard normal, or its absolute value where perturbations are not `signed`.
    """
    tensor = params[name]
    noise = streams.normal(*tensor.shape[1:], dtype=torch.float64).to(tensor.device)
    noise = noise if signed else noise.abs()
    scale = size * tensor.double().flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    moved = tensor + (scale.reshape(-1, *[1] * (tensor.ndim - 1)) * noise).to(tensor.dtype)
    return {**params, name: moved}


def without_unit(family: Family, params: Params, unit: Tensor) -> Params:
    """Params of networks of one layer in which nothing reads the hidden unit of number `unit` (models,) any more."""
    removed = torch.nn.functional.one_hot(unit, family.spec.axes["hidden"].size).bool()
    kept = dict(params)
    for name, _, source in family.spec.matrices():
        if source == "hidden":
            # Sources stand last.
            column = removed.reshape(len(unit), *[1] * (kept[name].ndim - 2), -1)
            kept[name] = kept[name].masked_fill(column, 0)
    return kept
