"""Share of a zoo's shards: those that one of several builders makes, as in the tasks of a job array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Builder `number` of `count`, counted from 1; shards are dealt in turn, so that costly cohorts are spread."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"{self.number}/{self.count} is no share: give I/N with I from 1 to N, such as 2/8.")

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that `I/N` names."""
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", text.strip())
        if match is None:
            raise ValueError(f"`shard` is '{text}'; give I/N with whole numbers and I from 1 to N, such as 2/8.")
        return cls(int(match[1]), int(match[2]))

    def of(self, num_shards: int) -> Sequence[int]:
        """Indices of the shards in this share, ascending."""
        return range(self.number - 1, num_shards, self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
