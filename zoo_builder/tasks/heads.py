"""Binary questions about the last N bits, for one N or for many at once, each with a head of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.rollout.criterion import NOT_ASKED, Criterion
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split
from zoo_builder.tasks.categorical import Categorical, share_of_right

CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class Heads(Categorical):
    """A yes-or-no question about the last N bits of a stream, answered after the last step, N from 2 to `max_n`.

    With `heads` "single" a model answers for its own `n` alone, through its only head. With "many" there is a head for
    each N = 2..max_n, and a model answers for all N = 2..n at once; the others are not asked. With "sliding" there are
    `window` heads, and a model answers for the last `window` values of N up to n, in order from the first head on, so
    that under a curriculum heads are used again for larger N. Head k has the outputs 2k and 2k + 1 (no, yes). A
    sequence of M bits, M uniform from n + 2 to 4 n + 1, comes after silence (input 0) that fills up the 4 max_n + 1
    steps.
    """

    max_n: int = 10
    """Largest N that the length of a sequence has room for."""
    n: int = 5
    """The model's N, with several heads its largest one; at most `max_n`."""
    heads: Literal["single", "many", "sliding"] = "single"
    """One head for `n`, one for each N, or `window` heads for the last values of N."""
    window: int = field(default=3, metadata={"least": 1})
    """Number of heads with `heads` "sliding"."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = ("n",)
    difficulty: ClassVar[tuple[str, int] | None] = ("n", 2)
    classes_per_head: ClassVar[int | None] = CLASSES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads not in ("single", "many", "sliding"):
            raise ValueError(f"`heads` (={self.heads!r}) must be 'single', 'many' or 'sliding'.")
        if not 2 <= self.n <= self.max_n:
            raise ValueError(f"`n` (={self.n}) must be from 2 to `max_n` (={self.max_n}).")

    @property
    def input_size(self) -> int:
        return 1

    @property
    def output_size(self) -> int:
        return 2 * self.num_heads

    @property
    def num_heads(self) -> int:
        """Number of heads, at most one for each N = 2..max_n."""
        return {"single": 1, "many": self.max_n - 1, "sliding": min(self.window, self.max_n - 1)}[self.heads]

    @property
    def num_steps(self) -> int:
        return 4 * self.max_n + 1

    @abstractmethod
    def draw_bits(self, streams: Streams, batch_size: int) -> Tensor:
        """Bits (models, time, batch), int64, for the whole length."""

    @abstractmethod
    def answers(self, bits: Tensor) -> Tensor:
        """Right answers 0 or 1 for every N = 2..max_n, (models, batch, N), int64, from bits (models, time, batch)."""

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        """See the base; the target is (models, 1, batch, head), -1 where a head is not asked."""
        n = self.whole_value("n", values, streams, 2, self.max_n)
        length = n[:, None] + 2 + streams.integers(3 * n, batch_size)
        silent = torch.arange(self.num_steps, device=streams.device)[:, None] < (self.num_steps - length)[:, None]
        bits = torch.where(silent, 0, self.draw_bits(streams, batch_size))
        first = (n - self.num_heads + 1).clamp(min=2)
        asked = first[:, None] + torch.arange(self.num_heads, device=streams.device)
        question = (asked - 2).clamp(max=self.max_n - 2)[:, None].expand(-1, batch_size, -1)
        target = torch.where((asked <= n[:, None])[:, None], self.answers(bits).gather(2, question), NOT_ASKED)
        x = bits.to(torch.float32)[..., None]
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=target[:, None])

    def criterion(self, batch: Batch) -> Criterion:
        """Cross-entropy in nats, mean over sequences, summed over the heads that are asked."""
        return Criterion("cross_entropy", batch.target, batch.shares, CLASSES)

    @share_of_right
    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of right answers (models,), mean over sequences and the heads that are asked."""
        last, target = outputs[:, -1], batch.target[:, 0]
        right = (last.unflatten(-1, (-1, 2)).argmax(-1) == target).to(torch.float64)
        asked = (target != NOT_ASKED).to(torch.float64)
        finite = last.isfinite().flatten(1).all(1)
        return torch.where(finite, right.sum((1, 2)) / asked.sum((1, 2)), torch.nan)

    def mastery(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The lesser of the score and the share of right answers of the newest head, the one for N = n, (models,)."""
        newest = (batch.target[:, 0] != NOT_ASKED).any(1).sum(1, keepdim=True) - 1
        return self.score(outputs, batch).minimum(self.score_by_head(outputs, batch).gather(1, newest)[:, 0])

    def score_by_head(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of right answers of each head (models, head), float64; NaN for a head that is not asked.

        All heads of a model are NaN if one of its outputs is not finite.
        """
        last, target = outputs[:, -1], batch.target[:, 0]
        right = (last.unflatten(-1, (-1, 2)).argmax(-1) == target).to(torch.float64).mean(1)
        usable = (target != NOT_ASKED).any(1) & last.isfinite().flatten(1).all(1, keepdim=True)
        return torch.where(usable, right, torch.nan)
