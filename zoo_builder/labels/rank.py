"""How many dimensions a model uses: of its driven states, its recurrent Jacobian and its recurrent weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn, rows_of_recurrent
from zoo_builder.labels.driven import DRIVE, JACOBIANS, Driven
from zoo_builder.labels.spectra import effective_rank, finite_only, matrix_ranks, participation_ratio, stable_rank

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
        found = _prefixed("state", _state_ranks(driven.trajectory.before.flatten(1, 2)))
        found |= _prefixed("jacobian", matrix_ranks(driven.mean_jacobian))
        for prefix, (name, row) in rows_of_recurrent(driven.family.effective_spec).items():
            tensor = driven.effective[name]
            found |= _prefixed(prefix, matrix_ranks(tensor if row is None else tensor[:, row]))
        return found


def _state_ranks(states: Tensor) -> dict[str, Tensor]:
    """The three ranks (models,) of the covariance of states (models, sample, state), over the state size."""
    usable, finite = finite_only(states)
    centred = usable - usable.mean(1, keepdim=True)
    # Scaled to 1, or states that are minute or huge leave the range of float64 when squared.
    flat = centred.flatten(1)
    largest = torch.maximum(-flat.amin(1), flat.amax(1))
    centred /= largest[:, None, None].clamp(min=torch.finfo(centred.dtype).tiny)
    covariance = centred.transpose(1, 2) @ centred / centred.shape[1]
    values = torch.linalg.eigvalsh(covariance).flip(-1)
    values = torch.where(values > values[:, :1] * 1e-12, values, 0)
    kinds = {"effective_rank": effective_rank, "stable_rank": stable_rank, "participation_ratio": participation_ratio}
    return {k: torch.where(finite, rank(values) / values.shape[-1], torch.nan) for k, rank in kinds.items()}


def _prefixed(prefix: str, ranks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}_{kind}": rank for kind, rank in ranks.items()}


def _column(prefix: str, kind: str, definition: str) -> LabelColumn:
    return LabelColumn(name=f"{prefix}_{kind}", unit="share of size", definition=definition, source=SOURCES[kind])
