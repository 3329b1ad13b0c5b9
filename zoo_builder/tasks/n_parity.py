"""Is the number of ones among the last N bits odd?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout import Streams
from zoo_builder.tasks.base import Task
from zoo_builder.tasks.heads import Heads


@dataclass(frozen=True, kw_only=True)
class NParity(Heads):
    """Is the number of ones among the last N bits odd? Asked after the last step, for one N or for many at once.

    The bits of a sequence are 1 with a probability of their own, uniform in [0, 1). Always answering "even" is right
    with probability 1/2 + 1/(2 (N + 1)) for even N and 1/2 for odd N. With `heads` "many" a model answers for all
    N = 2..n, each through its own head, with "sliding" for the last few of them. Khajehabdollahi et al. (Emergent
    mechanisms for long timescales depend on training curriculum and affect performance in memory tasks, ICLR 2024,
    arXiv 2309.12927).
    """

    def draw_bits(self, streams: Streams, batch_size: int) -> Tensor:
        chance = streams.uniform(1, batch_size)
        return (streams.uniform(self.num_steps, batch_size) < chance).to(torch.int64)

    def answers(self, bits: Tensor) -> Tensor:
        recent = bits[:, -self.max_n :].flip(1)
        return (recent.cumsum(1)[:, 1:] % 2).transpose(1, 2)

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(max_n=4, n=3), cls(max_n=5, n=4, heads="many"), cls(max_n=5, n=4, heads="sliding")]
