"""The contract of a label: one or more columns, each with definition, unit and source, measured on driven models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from weightspace.rows import RowSpec, row_specs, rows
from weightspace.spec import WeightSpec
from zoo_builder.labels.driven import Driven

SURROGATE = "Derivatives of spikes are those of the surrogate, not of the jump itself."
"""What a definition must say wherever derivatives, of which a spike has none, decide on the number."""


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """What one column of a zoo's table holds."""

    name: str
    unit: str
    definition: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Label(ABC):
    """One group of measurements. Subclasses are frozen dataclasses whose fields are its settings, all with defaults."""

    for_all_families: ClassVar[bool] = True
    """Whether every family has the columns; other labels refuse families that they cannot read."""

    @abstractmethod
    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        """What is stored for a family with this effective spec."""

    @abstractmethod
    def measure(self, driven: Driven) -> dict[str, Tensor]:
        """Every column (models,), float64, NaN where it does not apply to a model."""


def rows_of_recurrent(spec: WeightSpec) -> dict[str, RowSpec]:
    """Column prefix -> row of every recurrent matrix of a spec.

    The prefix is the tensor's name, with the row's where there is one, dots turned to underscores.
    """
    return {row.label.replace(".", "_"): row for row in row_specs(spec, spec.recurrent())}


def in_words(row: RowSpec) -> str:
    """The row of a recurrent matrix, as definitions name it."""
    return f"row {row.name} of '{row.tensor}'" if row.name else f"'{row.tensor}'"


def recurrent_matrices(driven: Driven) -> dict[str, Tensor]:
    """Every recurrent matrix as the function uses it, (models, to, from), float64, by the prefix of its columns."""
    spec = driven.family.effective_spec
    return {row.label.replace(".", "_"): row.value for row in rows(spec, driven.effective, spec.recurrent())}
