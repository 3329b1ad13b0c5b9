"""The direction and length of a wave, told over a long noisy sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split
from zoo_builder.tasks.categorical import Categorical

CHANNELS, CLASSES = 6, 5
AMPLITUDE = 0.5
SLOWEST, FASTEST = 0.01, 0.05
"""Frequencies of waves, in turns per step."""


@dataclass(frozen=True, kw_only=True)
class TravellingWave(Categorical):
    """Which of five waves travels over six channels? It is asked for after the last step.

    x_j(t) = sin(2 pi f t + a + j l_c) / 2 + noise, j the channel, where class c has the lag l_c = (c - 2) pi / 4 from
    one channel to the next: two lengths in either direction, and a standing swing. Frequency f and phase a are each
    sequence's own and say nothing about c. Noise hides the wave in any few steps: an observer that knows all of this
    is right 70 times of 100 after 50 steps and always after 300. Guessing scores 0.2. A synthetic stand-in, made
    here, for the classification of worms by six amplitudes of their posture over 17984 steps (Lim et al., ICLR 2024,
    arXiv 2309.12252).
    """

    num_steps: int = field(default=1000, metadata={"least": 1})
    """Length of a sequence."""
    deviation: float = 2.0
    """Standard deviation of the noise, from 1.5 to 2."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-5.5, 5.5)
    splits_differ: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # Other noise would leave the declared range, or not fill it.
        if not 1.5 <= self.deviation <= 2:
            raise ValueError(f"`deviation` (={self.deviation:g}) must be from 1.5 to 2.")

    @property
    def input_size(self) -> int:
        return CHANNELS

    @property
    def output_size(self) -> int:
        return CLASSES

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        target = streams.integers(CLASSES, 1, batch_size)
        frequency, phase = streams.uniform(2, batch_size).unbind(1)
        frequency = SLOWEST * (FASTEST / SLOWEST) ** frequency
        time = torch.arange(self.num_steps, device=streams.device)[:, None, None]
        channel = torch.arange(CHANNELS, device=streams.device)
        lag = (target[:, 0] - CLASSES // 2) * (math.pi / 4)
        angle = 2 * math.pi * (frequency[:, None, :, None] * time + phase[:, None, :, None])
        noise = self.deviation * streams.normal(self.num_steps, batch_size, CHANNELS)
        x = AMPLITUDE * torch.sin(angle + lag[:, None, :, None] * channel) + noise
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=target)

    @classmethod
    def examples(cls) -> Sequence[TravellingWave]:
        return [cls(num_steps=12), cls(num_steps=5, deviation=1.5)]
