"""A decision on one of two streams of evidence, as the context says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split
from zoo_builder.tasks.signs import Signs


@dataclass(frozen=True, kw_only=True)
class ContextDecision(Signs):
    """Has the stream of evidence that counts a positive or a negative mean? Answered after the last step.

    Inputs are motion, colour, and two context lines, of which 1 marks the stream that counts and the other is 0. Each
    stream is a constant d plus Gaussian noise of standard deviation `noise`, new at each step; d is uniform up to
    `strength` * `noise` / sqrt(num_steps), so that summed evidence is up to `strength` standard deviations of summed
    noise. The answer is the sign of the relevant d and the score the share of right signs: who sums gets the
    mean of Phi(strength * u), u uniform in [0, 1]. Context-dependent decision of Mante et al. (Nature 2013).
    """

    num_steps: int = 25
    """Steps of evidence."""
    strength: float = 5.0
    """Size of the evidence beside its noise."""
    noise: float = 0.5
    """Standard deviation of the noise on both streams of evidence."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-1.5, 1.5)
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = ("strength",)

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` (={self.num_steps}) must be at least 1.")
        if not self.strength > 0:
            raise ValueError(f"`strength` (={self.strength}) must be positive.")
        if not 0 < self.noise <= 0.5:
            raise ValueError(f"`noise` (={self.noise}) must be above 0 and at most 0.5, for inputs within 1.5.")

    @property
    def input_size(self) -> int:
        return 4

    @property
    def output_size(self) -> int:
        return 1

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        strength = self.value("strength", values, streams)
        if bool((strength <= 0).any()):
            raise ValueError("`strength` of a model must be positive.")
        largest = (strength * self.noise / math.sqrt(self.num_steps)).float()[:, None, None]
        # Never 0, which has no sign.
        size = 1 - streams.uniform(batch_size, 2)
        means = largest * size * (2.0 * streams.integers(2, batch_size, 2) - 1)
        relevant = streams.integers(2, batch_size)
        evidence = means[:, None] + self.noise * streams.normal(self.num_steps, batch_size, 2)
        context = torch.stack([1 - relevant, relevant], -1)[:, None].expand(-1, self.num_steps, -1, -1)
        target = means.gather(2, relevant[..., None]).sign()[:, None]
        x = torch.cat([evidence, context], -1).float()
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=target.float())

    @classmethod
    def examples(cls) -> Sequence[ContextDecision]:
        return [cls(num_steps=12), cls(num_steps=25, strength=2.0)]
