"""Predicting a text character by character."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split, Task
from zoo_builder.tasks.categorical import Categorical, mean_over_scored
from zoo_builder.tasks.text import ALPHABET, Text, read_text


@dataclass(frozen=True, kw_only=True)
class CharLanguage(Categorical):
    """The next character of a text: windows of a text, one-hot; every step is scored.

    The text is that of the file `path`, small letters for capitals, or six tragedies of Shakespeare. Its first nine
    tenths are for training, the last tenth is for tests. A window begins anywhere in its part, with no memory of what
    stands before it. The score is 1 - b / log2(number of characters), b the bits per character: 0 for guessing; see
    `bits_per_character`. `zoo_builder.tasks.ngrams` has baselines. Mikolov et al., Subword language modeling with
    neural networks, 2012 (the measure; their text, Penn Treebank, is not free); windows without carried states as in
    the public code of Lizaire et al., ICML 2024, arXiv 2406.05045.
    """

    path: str | None = None
    """A text file, UTF-8, with the letters, digits and signs of `zoo_builder.tasks.text.ALPHABET` alone."""
    sha256: str | None = None
    """Hash of that file, which is refused if it has another; None for any."""
    num_steps: int = field(default=50, metadata={"least": 1})
    """Characters of a window."""

    input_kind: ClassVar[InputKind] = "one_hot"
    input_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        shorter = len(self.text.test)
        if shorter <= self.num_steps:
            raise ValueError(
                f"The last tenth of the text {self.path!r} has {shorter} characters, too few for windows of "
                f"`num_steps` (={self.num_steps}) and the character after it."
            )

    @property
    def text(self) -> Text:
        """The text as numbers of characters."""
        return read_text(self.path, self.sha256)

    @property
    def input_size(self) -> int:
        return len(ALPHABET)

    @property
    def output_size(self) -> int:
        return len(ALPHABET)

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        part = (self.text.test if split == "test" else self.text.train).to(streams.device)
        first = streams.integers(len(part) - self.num_steps, batch_size)
        place = first[:, None] + torch.arange(self.num_steps + 1, device=streams.device)[:, None]
        characters = part[place]
        table = torch.eye(len(ALPHABET), device=streams.device)
        x = table.index_select(0, characters[:, :-1].flatten()).unflatten(0, characters[:, :-1].shape)
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=characters[:, 1:].contiguous())

    def all_windows(self, split: Split) -> Batch:
        """Every window of one part once, one after another without overlap, for a single model."""
        part = self.text.test if split == "test" else self.text.train
        count = (len(part) - 1) // self.num_steps
        x, target = (part[first : first + count * self.num_steps].view(count, -1).T for first in (0, 1))
        shown = torch.eye(len(ALPHABET))[x][None]
        return Batch(x=shown, start=shown.new_zeros(1, count, 0), target=target[None].contiguous())

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """1 - b / log2(number of characters) (models,), b the bits per character; NaN if outputs are not finite."""
        scored = outputs[:, -batch.target.shape[1] :].double()
        nats = cross_entropy(scored.movedim(-1, 1), batch.target, reduction="none")
        score = 1 - mean_over_scored(nats, batch) / math.log(len(ALPHABET))
        return torch.where(scored.isfinite().flatten(1).all(1), score, torch.nan)

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(num_steps=12)]


def bits_per_character(score: float) -> float:
    """The bits per character of a score."""
    return (1 - score) * math.log2(len(ALPHABET))
