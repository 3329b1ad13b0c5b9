"""Prediction of the next token in strings of a counting language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.rollout.criterion import NOT_ASKED, Criterion
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split, Task
from zoo_builder.tasks.categorical import Categorical

BOS, A, B, C, D, EOS = range(6)
OFFSETS = ("mb", "mc", "md")
LARGEST_IMBALANCE = 9
"""|mb| + |mc| + |md| of the least balanced language with offsets from -3 to 2."""


@dataclass(frozen=True, kw_only=True)
class FormalLanguage(Categorical):
    """What comes next in a string a^n b^(n+mb) c^(n+mc) d^(n+md) of a model's own language?

    Tokens are one-hot: BOS, a, b, c, d, EOS; a string stands between BOS and EOS, and EOS fills the rest of `length`
    tokens. A string is drawn uniformly among all with 1 <= n <= max_n, no empty block, and room for BOS and EOS in
    `length`; longer ones are never drawn. These few strings are the language, so training and test draw from all of
    them. Steps up to the one that asks for the EOS count alike in the loss, and no later ones; with K strings of mean
    number of symbols L, the least possible loss is ln K / (L + 1).

    The score heeds the order: from the first b on, the language determines every next token up to EOS, and a string
    counts only if the most likely next token is right at every one of these steps. The score is the share of strings
    that count; answering with the last token read scores 0. Offsets from -3 to 2 make 216 languages; the most balanced
    ones, with small |mb| + |mc| + |md|, are the extreme tasks. The languages of Herrmann, Faccio and Schmidhuber
    (Learning useful representations of recurrent neural network weight matrices, ICML 2024, arXiv 2403.11998), after
    Gers and Schmidhuber (IEEE Transactions on Neural Networks 2001).
    """

    mb: int = 0
    """How many b there are beyond n; below 0, how many fewer."""
    mc: int = 0
    """How many c there are beyond n."""
    md: int = 0
    """How many d there are beyond n."""
    max_n: int = 9
    """Largest n of a string."""
    length: int = 42
    """Tokens of a sequence, BOS and EOS among them."""

    input_kind: ClassVar[InputKind] = "one_hot"
    input_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = OFFSETS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._range_of_n(torch.tensor([[float(getattr(self, name)) for name in OFFSETS]], dtype=torch.float64))

    @property
    def input_size(self) -> int:
        return 6

    @property
    def output_size(self) -> int:
        return 6

    @property
    def num_steps(self) -> int:
        return self.length - 1

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        offsets = torch.stack([self.value(name, values, streams) for name in OFFSETS], dim=1)
        least, most = self._range_of_n(offsets)
        n = least[:, None] + streams.integers(most - least + 1, batch_size)
        blocks = n[..., None] + F.pad(offsets.long(), (1, 0))[:, None]
        # A block ends where the next one starts; place 0 is BOS.
        ends = 1 + blocks.cumsum(-1)
        step = torch.arange(self.length, device=streams.device)[:, None, None]
        tokens = torch.where(step[..., 0] == 0, BOS, A + (step >= ends[:, None]).sum(-1))
        x = F.one_hot(tokens[:, :-1], self.input_size).to(torch.float32)
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=tokens[:, 1:])

    def criterion(self, batch: Batch) -> Criterion:
        """Mean cross-entropy in nats over all steps up to the one that asks for the EOS."""
        counts = batch.x[..., EOS] == 0
        share = counts.shape[2] / counts.flatten(1).sum(1, keepdim=True)
        target = torch.where(counts, batch.target, NOT_ASKED)[..., None]
        return Criterion("cross_entropy", target, share.expand(counts.shape[:2]).to(batch.x.dtype), self.output_size)

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of strings (models,) whose every next token from the first b up to EOS is predicted."""
        determined = batch.x[..., B : D + 1].any(-1)
        right = (outputs.argmax(-1) == batch.target) | ~determined
        finite = outputs.isfinite().flatten(1).all(1)
        return torch.where(finite, right.all(1).to(torch.float64).mean(1), torch.nan)

    def extremity(self, values: Mapping[str, Tensor]) -> Tensor | None:
        """1 for equal numbers of all four symbols, 0 for |mb| + |mc| + |md| = 9, linear in between."""
        imbalance = sum(values[name].abs() if name in values else abs(getattr(self, name)) for name in OFFSETS)
        return 1 - torch.as_tensor(imbalance, dtype=torch.float64) / LARGEST_IMBALANCE

    def _range_of_n(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest n (models,), int64, of strings that are drawn, for offsets (models, 3)."""
        least = 1 - offsets.amin(1).clamp(max=0)
        most = ((self.length - 2 - offsets.sum(1)) / 4).floor().clamp(max=self.max_n)
        wrong = (offsets != offsets.round()).any(1) | ~(most >= least)
        if bool(wrong.any()):
            offending = ", ".join(f"`{k}` (={v:g})" for k, v in zip(OFFSETS, offsets[wrong][0].tolist(), strict=True))
            raise ValueError(
                f"{offending} must be whole numbers that leave a string with no empty block, with n at most `max_n` "
                f"(={self.max_n}) and {self.length - 2} symbols at most, `length` without BOS and EOS."
            )
        return least.long(), most.long()

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(), cls(mb=1, mc=-2, md=2, max_n=5, length=20)]
