"""Memory of an angle over a delay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.rollout.criterion import Criterion
from weightspace.store import InputKind, OutputKind
from zoo_builder.tasks.base import Batch, Split, Task

TOLERANCE = math.pi / 5
"""Largest error of a right response, 36 degrees."""


@dataclass(frozen=True, kw_only=True)
class AngleMemory(Task):
    """Where was the cue? Its direction is shown for `cue` steps, and asked for after `delay` steps of fixation.

    Inputs are fixation, 1 until it goes off for the last `response` steps, and the cosine and sine of the angle
    (uniform) while the cue is on, else 0. Outputs are cosine and sine at the response steps. Fixation alone comes first
    where `delay` is below `max_delay`. A response is right if the mean output over its steps points within 36
    degrees of the cue, and the score is the share of right ones: guessing scores 0.2. The memory-guided saccade of
    Funahashi, Bruce and Goldman-Rakic (Journal of Neurophysiology 1989), with the criterion of Yang et al. (Nature
    Neuroscience 2019).
    """

    cue: int = 3
    """Steps for which the direction is shown."""
    max_delay: int = 20
    """Longest delay, which all sequences have room for."""
    delay: int = 10
    """Steps of fixation between cue and response."""
    response: int = 3
    """Steps of the response."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    output_kind: ClassVar[OutputKind] = "continuous"
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = ("delay",)
    difficulty: ClassVar[tuple[str, int] | None] = ("delay", 0)

    def __post_init__(self) -> None:
        for name in ("cue", "response"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1.")
        if not 0 <= self.delay <= self.max_delay:
            raise ValueError(f"`delay` (={self.delay}) must be from 0 to `max_delay` (={self.max_delay}).")

    @property
    def input_size(self) -> int:
        return 3

    @property
    def output_size(self) -> int:
        return 2

    @property
    def num_steps(self) -> int:
        return self.cue + self.max_delay + self.response

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        delay = self.whole_value("delay", values, streams, 0, self.max_delay)
        angle = 2 * math.pi * streams.uniform(batch_size)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        step = torch.arange(self.num_steps, device=streams.device)
        onset = (self.max_delay - delay)[:, None]
        shown = ((step >= onset) & (step < onset + self.cue)).to(direction.dtype)
        fixation = (step < self.num_steps - self.response).to(direction.dtype)
        cue = shown[:, :, None, None] * direction[:, None]
        x = torch.cat([fixation[:, None, None].expand(*cue.shape[:-1], 1), cue], -1)
        target = direction[:, None].expand(-1, self.response, -1, -1).contiguous()
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=target)

    def criterion(self, batch: Batch) -> Criterion:
        """Mean squared error."""
        return Criterion("squared_error", batch.target, batch.shares)

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of responses (models,) whose mean output points within 36 degrees of the cue."""
        scored = outputs[:, -batch.target.shape[1] :].double()
        response, direction = scored.mean(1), batch.target[:, 0].double()
        across = response[..., 0] * direction[..., 1] - response[..., 1] * direction[..., 0]
        along = (response * direction).sum(-1)
        right = (torch.atan2(across, along).abs() < TOLERANCE) & response.ne(0).any(-1)
        return torch.where(scored.isfinite().flatten(1).all(1), right.double().mean(1), torch.nan)

    @classmethod
    def examples(cls) -> Sequence[AngleMemory]:
        return [cls(cue=2, max_delay=4, delay=3, response=2), cls(cue=1, max_delay=2, delay=2, response=1)]
