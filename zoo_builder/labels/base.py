"""The contract of a label: one or more columns, each with definition, unit and source, measured on driven models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

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

    @abstractmethod
    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        """What is stored for a family with this effective spec."""

    @abstractmethod
    def measure(self, driven: Driven) -> dict[str, Tensor]:
        """Every column (models,), float64, NaN where it does not apply to a model."""


def rows_of_recurrent(spec: WeightSpec) -> dict[str, tuple[str, int | None]]:
    """Column prefix -> (tensor, row) for every recurrent matrix of a spec; row None where there is no channel axis.

    The prefix is the tensor's name, with the row's where there is one, dots turned to underscores.
    """
    found: dict[str, tuple[str, int | None]] = {}
    for name in spec.recurrent():
        for row, row_name in enumerate(spec.row_names(name)):
            has_rows = spec.channel_axis(name) is not None
            prefix = f"{name}_{row_name}" if has_rows else name
            found[prefix.replace(".", "_")] = (name, row if has_rows else None)
    return found


def recurrent_matrices(driven: Driven) -> dict[str, Tensor]:
    """Every recurrent matrix as the function uses it, (models, to, from), float64, by the prefix of its columns."""
    rows = rows_of_recurrent(driven.family.effective_spec).items()
    return {p: driven.effective[name] if row is None else driven.effective[name][:, row] for p, (name, row) in rows}
