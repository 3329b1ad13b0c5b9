"""Gram matrices: how what a model holds at many places lies to each other, whatever its units are called."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FLAT = 1e-10
"""Share of the mean square that values must vary by; what varies less is rounding about a constant."""


def variance(values: Tensor) -> Tensor:
    """Mean over places of the squared distance from their mean (models,) of values (models, place, unit).

    0 where values do not vary but for rounding.
    """
    size = (values - values.mean(1, keepdim=True)).square().sum(2).mean(1)
    return torch.where(size > FLAT * values.square().sum(2).mean(1), size, 0.0)


def gram(values: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix (models, place, place) of values (models, place, unit) less their mean over places, divided by its
    mean diagonal, and that diagonal per unit (models,); both 0 where the values do not vary.

    This is a representational similarity matrix (Kriegeskorte et al., Frontiers in Systems Neuroscience 2008): no
    permutation, sign or rotation of the units changes it, and units may be any number.
    """
    centred = values - values.mean(1, keepdim=True)
    matrix = centred @ centred.mT
    size = variance(values)
    varies = (size > 0)[:, None, None]
    return torch.where(varies, matrix / size[:, None, None], 0.0), size / values.shape[2]


def gram_of_states(states: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean of the Gram matrices of states (models, place, unit), and the mean log of their diagonals (models,).

    Each state of each layer is divided by its own mean diagonal first: a membrane potential of tens of millivolts, or
    an LSTM's cell, would otherwise hide all others. One number for a whole state keeps what its units are to each
    other, quiet ones quiet. States that do not vary are left out; NaN where there is no other.
    """
    matrices, sizes = (torch.stack(side) for side in zip(*map(gram, states.values()), strict=True))
    varies = sizes > 0
    count = varies.sum(0)
    logs = torch.where(varies, sizes, 1.0).log().sum(0) / count
    return matrices.sum(0) / count[:, None, None], logs


def distance(wanted: Tensor, z: Tensor) -> Tensor:
    """|K - Z Z^T|^2 / |K|^2 (models,) of Gram matrices K (models, place, place) and z (models, place, any), centred.

    NaN, and without a gradient, where K is not finite or 0.
    """
    size = wanted.square().sum((1, 2))
    known = size.isfinite() & (size > 0)
    wanted, z = (torch.where(known[:, None, None], value, 0.0) for value in (wanted, z))
    z = z - z.mean(1, keepdim=True)
    error = (wanted - z @ z.mT).square().sum((1, 2)) / torch.where(known, size, 1.0)
    return torch.where(known, error, torch.nan)
