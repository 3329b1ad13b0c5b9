"""The sum of two marked numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split, Task
from zoo_builder.tasks.continuous import Continuous


@dataclass(frozen=True, kw_only=True)
class Adding(Continuous):
    """What is the sum of the two marked numbers? It is asked for after the last step.

    Each step shows a number, uniform in [0, 1), and a mark, 1 at one step of the first and one step of the second half
    (of an odd length the second half is the longer one), else 0. The best constant answer is 1, with a mean squared
    error of 1/6. The adding problem of Hochreiter and Schmidhuber (Long short-term memory, Neural Computation 1997)
    as in Le, Jaitly and Hinton (arXiv 1504.00941).
    """

    num_steps: int = field(default=20, metadata={"least": 2})
    """Length of a sequence: one step at least for each marked number."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    splits_differ: ClassVar[bool] = False

    @property
    def input_size(self) -> int:
        return 2

    @property
    def output_size(self) -> int:
        return 1

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        half = self.num_steps // 2
        numbers = streams.uniform(self.num_steps, batch_size)
        first = streams.integers(half, 1, batch_size)
        second = half + streams.integers(self.num_steps - half, 1, batch_size)
        step = torch.arange(self.num_steps, device=streams.device)[:, None]
        marks = ((step == first) | (step == second)).to(numbers.dtype)
        target = (numbers * marks).sum(1)[:, None, :, None]
        start = numbers.new_zeros(len(streams), batch_size, 0)
        return Batch(x=torch.stack([numbers, marks], dim=-1), start=start, target=target)

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(num_steps=6), cls(num_steps=3)]
