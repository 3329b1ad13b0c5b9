"""Delayed match to sample with a distractor in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split
from zoo_builder.tasks.categorical import Categorical


@dataclass(frozen=True, kw_only=True)
class DistractedMatch(Categorical):
    """Is the last stimulus the first one? Between them lies another one, which must be ignored.

    Inputs are one-hot: `num_stimuli` stimuli, then blank. A trial is sample, `delay` blanks, distractor, `delay`
    blanks, test; blanks come first where `delay` is below `max_delay`. The distractor is any stimulus but the sample.
    Half the tests are the sample; half of the others repeat the distractor, and the rest are any third stimulus, so
    that noticing a repetition does not help. Classes are 0, no match, and 1, match; guessing scores 0.5. After the
    delayed match to sample of Miller, Erickson and Desimone (Journal of Neuroscience 1996), with one stimulus between.
    """

    num_stimuli: int = 4
    """Number of different stimuli."""
    max_delay: int = 10
    """Longest delay, which all sequences have room for."""
    delay: int = 5
    """Steps between sample and test, in which the distractor is shown."""

    input_kind: ClassVar[InputKind] = "one_hot"
    input_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = ("delay",)
    difficulty: ClassVar[tuple[str, int] | None] = ("delay", 0)

    def __post_init__(self) -> None:
        if self.num_stimuli < 3:
            raise ValueError(f"`num_stimuli` (={self.num_stimuli}) must be at least 3: sample, distractor and a third.")
        if not 0 <= self.delay <= self.max_delay:
            raise ValueError(f"`delay` (={self.delay}) must be from 0 to `max_delay` (={self.max_delay}).")

    @property
    def input_size(self) -> int:
        return self.num_stimuli + 1

    @property
    def output_size(self) -> int:
        return 2

    @property
    def num_steps(self) -> int:
        return 2 * self.max_delay + 3

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        delay = self.whole_value("delay", values, streams, 0, self.max_delay)
        sample = streams.integers(self.num_stimuli, batch_size)
        distractor = (sample + 1 + streams.integers(self.num_stimuli - 1, batch_size)) % self.num_stimuli
        low, high = torch.minimum(sample, distractor), torch.maximum(sample, distractor)
        third = streams.integers(self.num_stimuli - 2, batch_size)
        # Counted past the two that it must not be.
        third = third + (third >= low)
        third = third + (third >= high)
        kind = streams.integers(4, batch_size)
        test = torch.where(kind < 2, sample, torch.where(kind == 2, distractor, third))
        last = self.num_steps - 1
        tokens = sample.new_full((len(streams), self.num_steps, batch_size), self.num_stimuli)
        for at, shown in ((last - 2 - 2 * delay, sample), (last - 1 - delay, distractor)):
            tokens.scatter_(1, at[:, None, None].expand(-1, 1, batch_size), shown[:, None])
        tokens[:, last] = test
        x = one_hot(tokens, self.input_size).to(torch.float32)
        match = (test == sample).to(torch.int64)[:, None]
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=match)

    @classmethod
    def examples(cls) -> Sequence[DistractedMatch]:
        return [cls(num_stimuli=3, max_delay=3, delay=2), cls(max_delay=1, delay=1)]
