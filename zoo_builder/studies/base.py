"""The contract of a study: a paper's phenomenon, the small zoos that show it, and the gates that its numbers pass."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from weightspace.store import Zoo

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A number that a study measures, and how it compares with a threshold if the phenomenon is there."""

    name: str
    """Meaning of the number, in the words of the paper."""
    comparison: Literal[">", ">=", "<", "<="]
    threshold: float
    unit: str

    def passes(self, value: float) -> bool:
        """Whether a measured value is on the right side of the threshold; NaN never is."""
        return COMPARISONS[self.comparison](value, self.threshold)

    def __str__(self) -> str:
        return f"{self.name} {self.comparison} {self.threshold:g} {self.unit}"


@dataclass(frozen=True)
class Measured:
    """Numbers and curves that a study measured in its zoos."""

    values: Mapping[str, float]
    """The number of each gate, by the gate's name; NaN where there is none."""
    curves: Mapping[str, Any]
    """Curves of the figure."""
    reported: Sequence[Mapping[str, Any]] = ()
    """Rows of a table of numbers that are not judged, each with the same columns."""


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """One phenomenon of a paper. Subclasses are frozen dataclasses whose fields are the study's size, with defaults.

    With the defaults it takes at most ten CPU minutes. The docstring says what the paper claims, then what is built
    and measured here.
    """

    paper: ClassVar[str]
    """Authors, title, venue, year and arXiv number."""
    gates: ClassVar[tuple[Gate, ...]]

    @property
    @abstractmethod
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """The recipes of the zoos that the study reads, by the names of their folders."""

    @abstractmethod
    def measure(self, zoos: Mapping[str, Zoo]) -> Measured:
        """Measurements on the finished zoos, by the names of their recipes."""

    @abstractmethod
    def draw(self, measured: Measured) -> Figure:
        """The paper's figure, drawn from the measured numbers, in the paper's words."""
