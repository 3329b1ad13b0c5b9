"""Modes of the recurrent weights that last, and the time after which they are back where they were."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn, in_words, recurrent_matrices, rows_of_recurrent
from zoo_builder.labels.driven import Driven
from zoo_builder.labels.spectra import eigenvalues, finite_only, of_each

LASTING = 0.9
"""Absolute value above which an eigenvalue is persistent."""
NEAR = 0.1
"""Largest distance, in turns, of a mode that counts as being back."""
LONGEST_PERIOD = 64
SOURCE = "after Karuvally, Sejnowski and Siegelmann, ICML 2024, arXiv 2402.10163"


@dataclass(frozen=True, kw_only=True)
class Waves(Label):
    """Number of persistent eigenvalues of the recurrent weights, and the period of the wave that they carry."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        columns = []
        for prefix, row in rows_of_recurrent(spec).items():
            columns.append(
                LabelColumn(
                    name=f"{prefix}_persistent_eigenvalues",
                    unit="eigenvalues",
                    definition=f"Number of eigenvalues of {in_words(row)}, as the function uses it, with an absolute "
                    f"value above {LASTING}.",
                    source=SOURCE,
                )
            )
            columns.append(
                LabelColumn(
                    name=f"{prefix}_wave_period",
                    unit="steps",
                    definition=f"Fewest steps after which every eigenvalue of {in_words(row)} with an absolute value "
                    f"above {LASTING} has turned by whole turns, to within {NEAR:g} of a turn; 1 where none turns. "
                    f"Null where there is none such eigenvalue, or the period is beyond {LONGEST_PERIOD} steps.",
                    source=SOURCE,
                )
            )
        return tuple(columns)

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        return of_each(recurrent_matrices(driven), lambda _, stack: waves(stack))


def waves(matrices: Tensor) -> dict[str, Tensor]:
    """Both columns (models,) of square matrices (models, n, n); NaN where these are not finite."""
    usable, finite = finite_only(matrices)
    values = eigenvalues(usable)
    finite = finite & values.isfinite().all(1)
    lasting = values.abs() > LASTING
    period = period_of(values.angle() / (2 * math.pi), lasting)
    count = lasting.sum(1).to(period.dtype)
    columns = {"persistent_eigenvalues": count, "wave_period": period}
    return {name: torch.where(finite, column, torch.nan) for name, column in columns.items()}


def period_of(turns: Tensor, counts: Tensor) -> Tensor:
    """Fewest steps (models,) after which all modes that count are back; NaN if none counts or it takes too long.

    `turns` (models, mode) is the part of a turn that a mode makes in one step, `counts` (models, mode) a mask.
    """
    steps = torch.arange(1, LONGEST_PERIOD + 1, dtype=turns.dtype, device=turns.device)
    angle = steps[:, None] * turns[:, None]
    away = (angle - angle.round()).abs() > NEAR
    back = ~(away & counts[:, None]).any(2)
    usable = back.any(1) & counts.any(1)
    return torch.where(usable, 1 + back.to(torch.int64).argmax(1).to(turns.dtype), torch.nan)
