"""Products of units and inputs in the drive: the ranks of their tensor, and their share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families.multiplicative import Multiplicative
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import DRIVE, Driven
from zoo_builder.labels.spectra import finite_only

ENDS = {"product_rank_to": 1, "product_rank_from": 2, "product_rank_input": 3}
"""Column -> the axis of T (models, to, from, input) that the unfolding keeps."""
SHARE = "product_share"
LEAST = 1e-3
"""Singular values below this part of the largest count as 0."""
NULL = "Null where the drive of the family has no such products (the families of `families.multiplicative` have)."


@dataclass(frozen=True, kw_only=True)
class Products(Label):
    """Multilinear ranks of the tensor of products of a unit and an input, and the part of the drive they make."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        ranks = tuple(
            LabelColumn(
                name=name,
                unit="1",
                definition=f"Number of singular values above {LEAST:g} of the largest of T (hidden, hidden, input) "
                f"unfolded along its axis '{name.rpartition('_')[2]}', T the weights of products of a unit and an "
                f"input in the drive; 0 where T is 0. {NULL}",
                source="multilinear rank: De Lathauwer, De Moor and Vandewalle, SIAM J. Matrix Anal. Appl. 2000",
            )
            for name in ENDS
        )
        share = LabelColumn(
            name=SHARE,
            unit="1",
            definition=f"|p|^2 / (|p|^2 + |q|^2), p the products and q the first-order terms without the bias in the "
            f"drive of the units, summed over units and over {DRIVE}. {NULL}",
            source="the ratio of norms as in Lizaire et al., ICML 2024, here as a share",
        )
        return (*ranks, share)

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        family = driven.family
        if not isinstance(family, Multiplicative):
            return dict.fromkeys((*ENDS, SHARE), driven.not_applicable)
        tensor = torch.func.vmap(family.product_tensor)(driven.params)
        found = {name: _rank(tensor.movedim(axis, 1).flatten(2)) for name, axis in ENDS.items()}
        trajectory = driven.trajectory
        h, x = trajectory.before.flatten(1, 2), trajectory.x.flatten(1, 2)
        products = _energy(torch.func.vmap(family.products)(driven.params, h, x))
        if not family.first_order:
            return {**found, SHARE: torch.ones_like(products)}
        return {**found, SHARE: products / (products + _energy(torch.func.vmap(family.sums)(driven.params, h, x)))}


def _rank(matrices: Tensor) -> Tensor:
    """Number of singular values of matrices (models, row, column) that count, (models,), float64."""
    usable, finite = finite_only(matrices)
    values = torch.linalg.svdvals(usable)
    rank = ((values > LEAST * values[:, :1]) & (values > 0)).sum(1).double()
    return torch.where(finite, rank, torch.nan)


def _energy(drive: Tensor) -> Tensor:
    """Mean square (models,) of a drive (models, point, unit)."""
    return drive.square().mean((1, 2))
