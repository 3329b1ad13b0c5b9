"""How many dimensions a model uses: of its driven states, its recurrent Jacobian and its recurrent weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn, in_words, recurrent_matrices, rows_of_recurrent
from zoo_builder.labels.driven import DRIVE, JACOBIANS, Driven
from zoo_builder.labels.spectra import has_one_direction, matrix_ranks, of_each, vary

FLAT_NATIVELY = 4
"""Deviation of states, in units of rounding in their dtype, up to which their native mean is as far off."""
FORMULAS = {
    "effective_rank": "exp(entropy of s / sum s)",
    "stable_rank": "sum s^2 / max s^2",
    "participation_ratio": "(sum s^2)^2 / sum s^4",
}
NULL = "Null where all s are 0."
STATE_FORMULAS = {
    "effective_rank": "exp(entropy of l / sum l)",
    "stable_rank": "sum l / max l",
    "participation_ratio": "(sum l)^2 / sum l^2",
}
SOURCES = {
    "effective_rank": "Roy and Vetterli, The effective rank, EUSIPCO 2007",
    "stable_rank": "Rudelson and Vershynin, Journal of the ACM 2007",
    "participation_ratio": "Gao et al., A theory of multineuronal dimensionality, bioRxiv 214262, 2017",
}


@dataclass(frozen=True, kw_only=True)
class Rank(Label):
    """Effective rank, stable rank and participation ratio, each as a share of the size (0 to 1)."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        states = f"divided by the state size; l are the eigenvalues of the covariance of the states on {DRIVE}"
        still = "Null where states vary by rounding alone."
        found = [_column("state", kind, f"{STATE_FORMULAS[kind]} {states}. {still}") for kind in FORMULAS]
        jacobian = f"divided by the state size; s are the singular values of the mean of the {JACOBIANS}"
        found += [_column("jacobian", kind, f"{FORMULAS[kind]} {jacobian}. {NULL}") for kind in FORMULAS]
        for prefix, row in rows_of_recurrent(spec).items():
            weights = f"divided by its size; s are the singular values of {in_words(row)} as the function uses it"
            found += [_column(prefix, kind, f"{FORMULAS[kind]} {weights}. {NULL}") for kind in FORMULAS]
        return tuple(found)

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        matrices = {"state": covariances(driven), "jacobian": driven.measured.mean_jacobian}

        def ranks(names: list[str], stack: Tensor) -> dict[str, Tensor]:
            # The eigenvalues of a matrix without negative ones are its singular values.
            are_covariances = torch.tensor([name == "state" for name in names], device=stack.device)
            own = are_covariances.repeat_interleave(len(stack) // len(names))
            return matrix_ranks(stack, driven.method, are_covariances=own)

        return of_each(matrices | recurrent_matrices(driven), ranks)


def covariances(driven: Driven) -> Tensor:
    """Covariances (models, state, state) of driven states up to a factor, 0 where they vary by rounding alone.

    The rounding of the mean of a constant lies in one direction, so that few models need be driven again in float64.
    """
    found = driven.measured.covariance
    suspected = has_one_direction(found)
    if not bool(suspected.any()):
        return found
    flat = (FLAT_NATIVELY * torch.finfo(driven.dtype).eps) ** 2
    still = suspected & ~vary(driven.trajectory.before.flatten(1, 2), flat)
    return torch.where(still[:, None, None], 0, found)


def _column(prefix: str, kind: str, definition: str) -> LabelColumn:
    return LabelColumn(name=f"{prefix}_{kind}", unit="share of size", definition=definition, source=SOURCES[kind])
