"""Is the last bit the same as the one N - 1 steps before it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout import Streams
from zoo_builder.tasks.base import Task
from zoo_builder.tasks.heads import Heads


@dataclass(frozen=True, kw_only=True)
class NDelayedMatch(Heads):
    """Are the first and the last of the last N bits equal? Asked after the last step, for one N or for many at once.

    Bits are fair coins, so guessing is right half the time. With `heads` "many" a model answers for all N = 2..n, each
    through its own head, with "sliding" for the last few of them. N-DMS of Khajehabdollahi et al. (Emergent mechanisms
    for long timescales depend on training curriculum and affect performance in memory tasks, ICLR 2024, arXiv
    2309.12927).
    """

    def draw_bits(self, streams: Streams, batch_size: int) -> Tensor:
        return (streams.uniform(self.num_steps, batch_size) < 0.5).to(torch.int64)

    def answers(self, bits: Tensor) -> Tensor:
        recent = bits[:, -self.max_n :].flip(1)
        return (recent[:, 1:] == recent[:, :1]).to(torch.int64).transpose(1, 2)

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(max_n=4, n=3), cls(max_n=5, n=4, heads="many"), cls(max_n=5, n=4, heads="sliding")]
