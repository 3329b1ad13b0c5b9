"""A bit to be held against noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split
from zoo_builder.tasks.categorical import Categorical


@dataclass(frozen=True, kw_only=True)
class Latch(Categorical):
    """Was the first input 1 or -1? It is asked for after the last step, and all inputs between are Gaussian noise.

    The two-class latching problem of Bengio, Simard and Frasconi (Learning long-term dependencies with gradient
    descent is difficult, IEEE Transactions on Neural Networks 1994), the class shown at the first step alone. Guessing
    scores 0.5. Gradients that do not go back to the first step do not know about it.
    """

    num_steps: int = field(default=16, metadata={"least": 2})
    """Length of a sequence, the first step included."""
    deviation: float = 0.3
    """Standard deviation of the noise."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    splits_differ: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # Louder noise would leave the declared range.
        if not 0 <= self.deviation <= 0.35:
            raise ValueError(f"`deviation` (={self.deviation:g}) must be from 0 to 0.35.")

    @property
    def input_size(self) -> int:
        return 1

    @property
    def output_size(self) -> int:
        return 2

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        bit = streams.integers(2, 1, batch_size)
        noise = self.deviation * streams.normal(self.num_steps - 1, batch_size)
        x = torch.cat([2 * bit.to(noise.dtype) - 1, noise], dim=1)[..., None]
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=bit)

    @classmethod
    def examples(cls) -> Sequence[Latch]:
        return [cls(num_steps=6), cls(num_steps=2, deviation=0.1)]
