"""A string of symbols, repeated after a delay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split, Task
from zoo_builder.tasks.categorical import Categorical


@dataclass(frozen=True, kw_only=True)
class Copy(Categorical):
    """Which symbols were shown? `length` symbols, then blanks; once a cue is given they are repeated in order.

    Inputs are one-hot: the symbols, drawn uniformly, then blank, then cue. `delay` steps lie
    between the last symbol and the first answer, the last of them the cue. Blanks come first where `delay` is below
    `max_delay`, so that every sequence ends with its answers. Only these are scored; guessing scores 1 / `num_symbols`.
    The copy memory task of Hochreiter and Schmidhuber (Long
    short-term memory, Neural Computation 1997) in the form of Arjovsky, Shah and Bengio (ICML 2016).
    """

    num_symbols: int = field(default=8, metadata={"least": 2})
    """Number of different symbols."""
    length: int = field(default=5, metadata={"least": 1})
    """Symbols shown, and answers asked for."""
    max_delay: int = field(default=20, metadata={"least": 1})
    """Largest delay that the length of a sequence has room for."""
    delay: int = 10
    """Steps between the last symbol and the first answer, at most `max_delay`."""

    input_kind: ClassVar[InputKind] = "one_hot"
    input_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = ("delay",)
    difficulty: ClassVar[tuple[str, int] | None] = ("delay", 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.delay <= self.max_delay:
            raise ValueError(f"`delay` (={self.delay}) must be from 1 to `max_delay` (={self.max_delay}).")

    @property
    def input_size(self) -> int:
        return self.num_symbols + 2

    @property
    def output_size(self) -> int:
        return self.num_symbols

    @property
    def num_steps(self) -> int:
        return 2 * self.length + self.max_delay

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        delay = self.whole_value("delay", values, streams, 1, self.max_delay)
        symbols = streams.integers(self.num_symbols, self.length, batch_size)
        position = torch.arange(self.num_steps, device=streams.device) - (self.max_delay - delay)[:, None]
        shown = ((position >= 0) & (position < self.length))[..., None]
        at = position.clamp(0, self.length - 1)[..., None].expand(-1, -1, batch_size)
        tokens = torch.where(shown, symbols.gather(1, at), self.num_symbols)
        tokens[:, self.num_steps - self.length - 1] = self.num_symbols + 1
        x = one_hot(tokens, self.input_size).to(torch.float32)
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=symbols)

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(num_symbols=3, length=2, max_delay=4, delay=3), cls(num_symbols=4, length=3, max_delay=1, delay=1)]
