"""Two chirps, far apart in a long and noisy sequence."""

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

LOW, HIGH = 1 / 16, 1 / 4
"""Frequencies between which a chirp sweeps, in cycles per step."""


@dataclass(frozen=True, kw_only=True)
class Chirps(Categorical):
    """Did the first chirp rise or fall in pitch, and the last? Four classes, asked for after the last step.

    Inputs are Gaussian noise, to which two chirps of amplitude 1 are added, one somewhere in the first quarter of the
    sequence and one in the last: sin 2 pi (p + f s + (g - f) s^2 / 2 L) at s = 1/2, 3/2 ... L - 1/2 steps since its
    onset, with a random phase p. A rising one sweeps from f = 1/16 to g = 1/4 cycles per step, a falling one is its
    reversal, so that their spectra are equal. The class is 2 times the first plus the last, 1 for rising. Guessing
    scores 0.25, and a model that has forgotten the first quarter 0.5 at most. The temporal order problem of Hochreiter
    and Schmidhuber (Long short-term memory, Neural Computation 1997, task 6a), with chirps in the place of symbols.
    """

    num_steps: int = field(default=128, metadata={"least": 16})
    """Length of a sequence."""
    chirp_steps: int = field(default=16, metadata={"least": 4})
    """Length L of a chirp, at most a quarter of the sequence."""
    deviation: float = 0.2
    """Standard deviation of the noise."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-1.5, 1.5)
    splits_differ: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chirp_steps > self.num_steps // 4:
            raise ValueError(
                f"`chirp_steps` (={self.chirp_steps}) must be at most {self.num_steps // 4}, a quarter of `num_steps` "
                f"(={self.num_steps})."
            )
        # Louder noise would leave the declared range.
        if not 0 <= self.deviation <= 0.3:
            raise ValueError(f"`deviation` (={self.deviation:g}) must be from 0 to 0.3.")

    @property
    def input_size(self) -> int:
        return 1

    @property
    def output_size(self) -> int:
        return 4

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        quarter, length = self.num_steps // 4, self.chirp_steps
        rising = streams.integers(2, 2, batch_size)
        onset = streams.integers(quarter - length + 1, 2, batch_size)
        onset[:, 1] += self.num_steps - quarter
        phase = streams.uniform(2, batch_size, dtype=torch.float64)
        heard = self.deviation * streams.normal(self.num_steps, batch_size)
        step = torch.arange(self.num_steps, device=streams.device)[:, None]
        for chirp in range(2):
            since = (step - onset[:, None, chirp]).double() + 0.5
            bend = (HIGH - LOW) / 2 * (2 * rising[:, None, chirp] - 1) * (since**2 / length - since)
            wave = torch.sin(2 * math.pi * (phase[:, None, chirp] + (LOW + HIGH) / 2 * since + bend))
            heard = heard + torch.where((since >= 0) & (since < length), wave, 0).to(heard.dtype)
        target = 2 * rising[:, :1] + rising[:, 1:]
        return Batch(x=heard[..., None], start=heard.new_zeros(len(streams), batch_size, 0), target=target)

    @classmethod
    def examples(cls) -> Sequence[Chirps]:
        return [cls(num_steps=24, chirp_steps=4), cls(num_steps=17, chirp_steps=4, deviation=0.3)]
