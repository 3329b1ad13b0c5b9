"""Variables bound to a linear law of their own past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split, Task
from zoo_builder.tasks.signs import Signs


@dataclass(frozen=True, kw_only=True)
class VariableBinding(Signs):
    """How does it go on? `length` vectors of `num_values` signs are shown, and each later one is a law of the last s.

    y_t = F^T vec(y_{t-s} .. y_{t-1}), with s = `length`, d = `num_values` and number k d + i of vec the value i of step
    k, the oldest step being 0. Every column of F has a single entry of -1 or 1, so that all answers are signs again:
    value j repeats, or negates, one value of one earlier step. F is written as three numbers. The d bits of `choice`
    that are 1, from the lowest on, are the sources of the d values; then digit k of `swaps` in base d, from the lowest
    on, changes source k with source k + digit; bit j of `signs` negates value j. (2^d - 1, 0, 0) repeats what was
    shown. Inputs are 0 while answers are given. On level l there are horizon * 2^(l - 1) answers; all sequences have
    room for the last level, and answers beyond a model's own do not count. Guessing scores 0.5. The tasks of
    Karuvally, Sejnowski and Siegelmann (Hidden traveling waves bind working memory variables in recurrent neural
    networks, ICML 2024, arXiv 2402.10163), whose curriculum has horizons 10, 20, 40, 60, 100.
    """

    num_values: int = field(default=2, metadata={"least": 1})
    """Signs of one vector, d."""
    length: int = field(default=4, metadata={"least": 1})
    """Vectors shown, s, which is also the longest lag of the law."""
    choice: int = 3
    """Number of which the d bits that are 1 choose the sources among the s * d last values."""
    swaps: int = 0
    """Number whose digits in base d change sources with one another."""
    signs: int = 0
    """Number of which bit j negates value j."""
    horizon: int = field(default=8, metadata={"least": 1})
    """Vectors asked for on the first level."""
    levels: int = field(default=3, metadata={"least": 1})
    """Levels that the length of a sequence has room for; each has twice as many answers as the one before."""
    level: int = 3
    """The model's level, from 1 to `levels`."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = ("level",)
    difficulty: ClassVar[tuple[str, int] | None] = ("level", 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        d, most = self.num_values, self.num_values * self.length
        if not 0 <= self.choice < 2**most or self.choice.bit_count() != d:
            raise ValueError(
                f"`choice` (={self.choice}) must have `num_values` (={d}) bits of 1 among its lowest {most}."
            )
        if not 0 <= self.swaps < d**d or any(k + digit >= d for k, digit in enumerate(self._digits())):
            raise ValueError(
                f"`swaps` (={self.swaps}) must have digits in base {d} of which number k is below {d} - k, k from 0: "
                "there are no later sources to change with."
            )
        if not 0 <= self.signs < 2**d:
            raise ValueError(f"`signs` (={self.signs}) must be from 0 to {2**d - 1}, a bit for each of the values.")
        if not 1 <= self.level <= self.levels:
            raise ValueError(f"`level` (={self.level}) must be from 1 to `levels` (={self.levels}).")

    @property
    def input_size(self) -> int:
        return self.num_values

    @property
    def output_size(self) -> int:
        return self.num_values

    @property
    def longest(self) -> int:
        """Answers on the last level."""
        return int(self.horizon * 2 ** (self.levels - 1))

    @property
    def num_steps(self) -> int:
        return self.length + self.longest

    def _digits(self) -> list[int]:
        """Digits of `swaps`, lowest first."""
        return [self.swaps // self.num_values**k % self.num_values for k in range(self.num_values)]

    @property
    def sources(self) -> list[tuple[int, int]]:
        """(step, value) that each of the d values repeats, step 0 being the oldest of the last s."""
        chosen = [place for place in range(self.num_values * self.length) if self.choice >> place & 1]
        for k, digit in enumerate(self._digits()):
            chosen[k], chosen[k + digit] = chosen[k + digit], chosen[k]
        return [divmod(place, self.num_values) for place in chosen]

    @property
    def law(self) -> Tensor:
        """F (step * value, value), float64."""
        law = torch.zeros(self.length * self.num_values, self.num_values, dtype=torch.float64)
        for value, (step, source) in enumerate(self.sources):
            law[step * self.num_values + source, value] = -1 if self.signs >> value & 1 else 1
        return law

    @property
    def transition(self) -> Tensor:
        """Phi (step * value, step * value), float64, which moves the last s vectors, oldest first, one step on."""
        size, d = self.length * self.num_values, self.num_values
        return torch.cat([torch.eye(size, dtype=torch.float64)[d:], self.law.T])

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        """See the base; weights are 1 up to the model's own horizon, 0 beyond."""
        level = self.whole_value("level", values, streams, 1, self.levels)
        shown = 2.0 * streams.integers(2, self.length, batch_size, self.num_values).to(torch.float32) - 1
        whole = [*shown.unbind(1)]
        signs = self.law.sum(0).to(streams.device, shown.dtype)
        for _ in range(self.longest):
            last = whole[-self.length :]
            following = [last[step][..., source] for step, source in self.sources]
            whole.append(torch.stack(following, -1) * signs)
        target = torch.stack(whole[self.length :], 1)
        x = torch.cat([shown, torch.zeros_like(target)], 1)
        asked = torch.arange(self.longest, device=streams.device) < (self.horizon * 2 ** (level - 1))[:, None]
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=target, weight=asked.to(x.dtype))

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [
            cls(num_values=2, length=2, horizon=2, levels=2, level=2),
            cls(num_values=3, length=2, choice=0b101010, swaps=4, signs=5, horizon=3, levels=1, level=1),
        ]
