"""How far a model's linear maps are from having orthogonal eigenvectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn, in_words, recurrent_matrices, rows_of_recurrent
from zoo_builder.labels.driven import JACOBIANS, Driven
from zoo_builder.labels.spectra import eigenvalues, finite_only, of_each

ROUNDING = 8
"""Bound on the error of the sum of squared eigenvalues, in units of n eps ||A||_F^2."""


@dataclass(frozen=True, kw_only=True)
class NonNormality(Label):
    """Henrici's departure from normality of the mean recurrent Jacobian and of the recurrent weights."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        found = [_column("jacobian", f"the mean of the {JACOBIANS}")]
        for prefix, row in rows_of_recurrent(spec).items():
            found.append(_column(prefix, f"{in_words(row)} as the function uses it"))
        return tuple(found)

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        found = {"jacobian_henrici": henrici(driven.mean_jacobian)}
        return found | of_each(recurrent_matrices(driven), lambda _, stack: {"henrici": henrici(stack)})


def henrici(matrices: Tensor) -> Tensor:
    """sqrt(||A||_F^2 - sum |eigenvalue|^2) / ||A||_F (models,) of matrices (models, n, n); NaN where 0 or not finite.

    0 for a normal matrix, 1 for a nilpotent one. A difference within rounding of the eigenvalues is 0: its root would
    be noise some million times larger.
    """
    usable, finite = finite_only(matrices)
    # Scaled first, or the squares of minute or huge numbers leave the range of float64.
    largest = usable.abs().amax((1, 2))
    finite = finite & (largest > 0)
    scaled = usable / torch.where(finite, largest, 1)[:, None, None]
    squares = scaled.square().sum((1, 2))
    values = eigenvalues(scaled)
    finite = finite & values.isfinite().all(1)
    left = squares - values.abs().square().sum(1)
    rounding = ROUNDING * matrices.shape[-1] * torch.finfo(torch.float64).eps * squares
    left = torch.where(left > rounding, left, 0)
    return torch.where(finite, (left / squares).sqrt(), torch.nan)


def _column(prefix: str, of: str) -> LabelColumn:
    return LabelColumn(
        name=f"{prefix}_henrici",
        unit="share of the norm",
        definition=f"sqrt(||A||_F^2 - sum |l|^2) / ||A||_F, l the eigenvalues of A, {of}; 0 if normal, 1 if nilpotent, "
        "null if 0.",
        source="Henrici, Numerische Mathematik 1962",
    )
