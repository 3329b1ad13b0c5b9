"""What is probed: labels as targets, and their transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from weightspace.store import LabelColumn, refuse_missing_column

Kind = Literal["regression", "classification"]


def _log(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Take the natural logarithm of values (rows), which must be positive."""
    if np.any(values <= 0):
        raise ValueError(
            f"'log' needs positive labels, but {np.sum(values <= 0)} of {len(values)} are not; use 'clip'."
        )
    logarithms: np.ndarray = np.log(values)
    return logarithms


# Pure functions of labels (rows) and the target's bounds.
TRANSFORMS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "identity": lambda values, low, high: values,
    "clip": np.clip,
    "log": _log,
}


@dataclass(frozen=True, kw_only=True)
class Target(LabelColumn):
    """A label chosen for probing.

    name: column of models.parquet. transform: a key of `TRANSFORMS`; low and high bound 'clip', in the label's unit.
    trained_only: whether snapshots of step 0 (untrained models) are left out.
    """

    kind: Kind = "regression"
    transform: str = "identity"
    description: str = ""

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ValueError(
                f"Target '{self.name}': no transform '{self.transform}'; there are {', '.join(TRANSFORMS)}."
            )
        super().__post_init__()

    @property
    def transform_text(self) -> str:
        """The transform in words, for reports."""
        return f"clipped to [{self.low:g}, {self.high:g}]" if self.transform == "clip" else self.transform

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Transformed labels (rows) of raw labels (rows)."""
        try:
            return TRANSFORMS[self.transform](values, self.low, self.high)
        except ValueError as error:
            raise ValueError(f"Target '{self.name}': {error}") from None


_FADING = "rate at which a perturbation of the state fades, nats per step"
HEADLINES = (
    Target(
        name="state_effective_rank", description="entropy rank of the driven state's covariance over the state size"
    ),
    Target(name="memory_decay_rate", transform="clip", low=-0.5, high=1.5, description=_FADING),
    Target(name="score", trained_only=True, description="task performance, higher is better"),
)
CLASSES = (
    Target(name="family", kind="classification", description="class of the recurrent architecture"),
    Target(name="task", kind="classification", description="class of the task it was trained on"),
)


def named_target(table: pa.Table, name: str, zoo: str | Path = "ZOO") -> Target:
    """Find the target for a column: a headline or class as declared, else a number as it is, else a class."""
    refuse_missing_column(name, table.column_names, zoo)
    for target in HEADLINES + CLASSES:
        if target.name == name:
            return target
    stored = table.schema.field(name).type
    number = pa.types.is_floating(stored) or pa.types.is_integer(stored)
    return Target(name=name, kind="regression" if number else "classification", description=f"label '{name}'")


def default_targets(table: pa.Table, labels: Sequence[str] = ()) -> list[Target]:
    """Targets for a zoo: the headlines it has, else each of its non-null `labels`; then the classes that vary."""
    filled = {name for name in table.column_names if table.column(name).null_count < table.num_rows}
    chosen = [target for target in HEADLINES if target.name in filled]
    if not chosen:
        chosen = [named_target(table, name) for name in labels if name in filled]
    return chosen + [target for target in CLASSES if len(table.column(target.name).unique()) > 1]
