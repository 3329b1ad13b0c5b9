"""Recall of a binary stream after a delay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split, Task
from zoo_builder.tasks.categorical import Categorical


@dataclass(frozen=True, kw_only=True)
class DelayedRecall(Categorical):
    """What was the input `delay` steps ago? Inputs are fair coins, -1 or 1; the answer at step t is x_{t - delay}.

    Steps before `delay` are not scored; guessing scores 0.5. The binary version of the memory task of Jaeger (Short
    term memory in echo state networks, GMD report 152, 2001).
    """

    num_steps: int = 24
    """Length of a sequence."""
    delay: int = 4
    """How many steps ago the input was that is asked for, below `num_steps`."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = ("delay",)
    difficulty: ClassVar[tuple[str, int] | None] = ("delay", 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.delay < self.num_steps:
            raise ValueError(f"`delay` (={self.delay}) must be at least 0 and below `num_steps` (={self.num_steps}).")

    @property
    def input_size(self) -> int:
        return 1

    @property
    def output_size(self) -> int:
        return 2

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        delay = self._delays(values, streams)
        coins = _coins(streams, self.num_steps, batch_size)
        asked = torch.arange(self.num_steps, device=streams.device) - delay[:, None]
        target = coins.gather(1, asked.clamp(min=0)[..., None].expand(-1, -1, batch_size)).long()
        x = coins.to(torch.float32).mul_(2).sub_(1)[..., None]
        weight = (asked >= 0).to(torch.float32)
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=target, weight=weight)

    def _delays(self, values: Mapping[str, Tensor], streams: Streams) -> Tensor:
        """Each model's delay (models,), int64."""
        delay = self.value("delay", values, streams)
        wrong = (delay != delay.round()) | (delay < 0) | (delay >= self.num_steps)
        if bool(wrong.any()):
            raise ValueError(
                f"`delay` (={delay[wrong][0]:g}) must be a whole number, at least 0 and below `num_steps` "
                f"(={self.num_steps})."
            )
        return delay.long()

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(num_steps=7, delay=2), cls(num_steps=5, delay=0)]


def _coins(streams: Streams, num_steps: int, batch_size: int) -> Tensor:
    """Fair draws (models, time, batch) of 0 or 1, uint8, thirty-two from each random word."""
    count = num_steps * batch_size
    words = streams.bits(-(-count // 32))
    octets = (words[..., None] >> torch.arange(0, 32, 8, device=streams.device) & 0xFF).to(torch.uint8)
    bits = octets[..., None] >> torch.arange(8, dtype=torch.uint8, device=streams.device) & 1
    return bits.flatten(1)[:, :count].reshape(len(streams), num_steps, batch_size)
