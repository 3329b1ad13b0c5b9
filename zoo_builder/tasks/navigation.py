"""Tasks that keep track of a walk: places as activities of cells, known at the start and then to be integrated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split
from zoo_builder.tasks.continuous import Continuous

STEP = 0.02
"""Seconds of one step."""
TURN = 11.52
"""Standard deviation of turns, radians per second."""


@dataclass(frozen=True, kw_only=True)
class Navigation(Continuous):
    """A walk of `num_steps` steps: moves are shown, the first place by the cells' activities as the start.

    Targets are the activities after each move, and every step is scored.
    """

    cells: int = field(default=64, metadata={"least": 3})
    """Cells of which each answers to a part of all places."""
    num_steps: int = field(default=50, metadata={"least": 1})
    """Moves of a walk."""

    input_kind: ClassVar[InputKind] = "values"
    splits_differ: ClassVar[bool] = False

    @property
    def output_size(self) -> int:
        return self.cells

    @property
    def start_size(self) -> int:
        return self.cells

    @abstractmethod
    def walk(self, streams: Streams, batch_size: int) -> tuple[Tensor, Tensor]:
        """Places (models, time + 1, batch, coordinate), the first before any move, and moves (models, time, batch,
        coordinate), float32."""

    @abstractmethod
    def activities(self, places: Tensor) -> Tensor:
        """Activities (..., cell), from 0 to 1, at places (..., coordinate)."""

    @abstractmethod
    def decoded(self, activities: Tensor) -> Tensor:
        """Places (..., coordinate) that activities (..., cell) tell of."""

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        places, moves = self.walk(streams, batch_size)
        return Batch(x=moves, start=self.activities(places[:, 0]), target=self.activities(places[:, 1:]))
