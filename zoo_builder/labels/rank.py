"""How many dimensions a model uses: of its driven states, its recurrent Jacobian and its recurrent weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout import Method
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn, rows_of_recurrent
from zoo_builder.labels.driven import DRIVE, JACOBIANS, Driven
from zoo_builder.labels.spectra import (
    effective_rank,
    finite_only,
    matrix_ranks,
    nonzero,
    participation_ratio,
    singular_values,
    stable_rank,
)

FORMULAS = {
    "effective_rank": "exp(entropy of s / sum s)",
    "stable_rank": "sum s^2 / max s^2",
    "participation_ratio": "(sum s^2)^2 / sum s^4",
}
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
        found = [_column("state", kind, f"{STATE_FORMULAS[kind]} {states}.") for kind in FORMULAS]
        jacobian = f"divided by the state size; s are the singular values of the mean of the {JACOBIANS}"
        found += [_column("jacobian", kind, f"{FORMULAS[kind]} {jacobian}.") for kind in FORMULAS]
        for prefix, (name, row) in rows_of_recurrent(spec).items():
            where = f"'{name}'" if row is None else f"row {row} of '{name}'"
            weights = f"divided by its size; s are the singular values of {where} as the function uses it"
            found += [_column(prefix, kind, f"{FORMULAS[kind]} {weights}.") for kind in FORMULAS]
        return tuple(found)

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        found = _prefixed("state", _state_ranks(driven.measured.covariance, driven.method))
        found |= _prefixed("jacobian", matrix_ranks(driven.measured.mean_jacobian, driven.method))
        for prefix, (name, row) in rows_of_recurrent(driven.family.effective_spec).items():
            tensor = driven.effective[name]
            found |= _prefixed(prefix, matrix_ranks(tensor if row is None else tensor[:, row], driven.method))
        return found


def _state_ranks(covariance: Tensor, method: Method) -> dict[str, Tensor]:
    """The three ranks (models,) of covariances (models, state, state), over the state size."""
    usable, finite = finite_only(covariance)
    # The eigenvalues of a matrix without negative ones are its singular values.
    values = nonzero(singular_values(usable, method))
    kinds = {"effective_rank": effective_rank, "stable_rank": stable_rank, "participation_ratio": participation_ratio}
    return {k: torch.where(finite, rank(values) / values.shape[-1], torch.nan) for k, rank in kinds.items()}


def _prefixed(prefix: str, ranks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}_{kind}": rank for kind, rank in ranks.items()}


def _column(prefix: str, kind: str, definition: str) -> LabelColumn:
    return LabelColumn(name=f"{prefix}_{kind}", unit="share of size", definition=definition, source=SOURCES[kind])
