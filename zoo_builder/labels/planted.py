"""What was planted in models that were drawn instead of trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn, rows_of_recurrent
from zoo_builder.labels.driven import Driven
from zoo_builder.labels.spectra import eigenvalues


@dataclass(frozen=True, kw_only=True)
class MemoryMode(Label):
    """The cosine between the two vectors of a planted recurrent matrix, read back from its trace."""

    for_all_families: ClassVar[bool] = False

    gain: float = 1.5
    """The `gain` with which the mode was planted."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        recurrent_matrix(spec, type(self).__name__)
        return (
            LabelColumn(
                name="memory_mode",
                unit="1",
                definition=f"Trace of the recurrent matrix over the planted gain of {self.gain:g}.",
                source="the planted construction; compare Mastrogiuseppe and Ostojic, Neuron 2018",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        matrix = driven.effective[recurrent_matrix(driven.family.effective_spec, type(self).__name__)]
        return {"memory_mode": matrix.diagonal(dim1=1, dim2=2).sum(-1) / self.gain}


@dataclass(frozen=True, kw_only=True)
class SpectralAbscissa(Label):
    """The largest real part of the eigenvalues of the recurrent matrix."""

    for_all_families: ClassVar[bool] = False

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        recurrent_matrix(spec, type(self).__name__)
        return (
            LabelColumn(
                name="spectral_abscissa",
                unit="1",
                definition="Largest real part of the eigenvalues of the recurrent matrix.",
                source="Trefethen and Embree, Spectra and Pseudospectra, Princeton University Press 2005",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        matrix = driven.effective[recurrent_matrix(driven.family.effective_spec, type(self).__name__)]
        return {"spectral_abscissa": eigenvalues(matrix.double()).real.amax(-1)}


def recurrent_matrix(spec: WeightSpec, label: str) -> str:
    """Name of the one recurrent matrix that a label measures; ValueError where there is none, or gate rows, or more."""
    rows = rows_of_recurrent(spec)
    if len(rows) != 1 or any(row.name for row in rows.values()):
        raise ValueError(f"{label} needs exactly one recurrent matrix without gate rows; found {sorted(rows)}.")
    return next(iter(rows.values())).tensor
