"""Several bits of memory, each set by its own pulses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split
from zoo_builder.tasks.signs import Signs


@dataclass(frozen=True, kw_only=True)
class FlipFlop(Signs):
    """Which sign had the last pulse on each channel? Answered at every step, on `num_bits` channels at once.

    A channel shows a pulse of -1 or 1, a fair coin, with `pulse_probability` at each step and 0 otherwise; the first
    step shows a pulse on all, so that there is always an answer. The score is the share of right signs. The N-bit
    flip-flop of Sussillo and Barak (Opening the black box, Neural Computation 2013), in discrete steps.
    """

    num_bits: int = 3
    """Number of bits, each with an input and an output of its own."""
    num_steps: int = 30
    """Steps of a sequence."""
    pulse_probability: float = 0.1
    """Probability of a pulse at each bit and step."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = ("pulse_probability",)

    def __post_init__(self) -> None:
        for name in ("num_bits", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1.")
        if not 0 < self.pulse_probability <= 1:
            raise ValueError(f"`pulse_probability` (={self.pulse_probability}) must be above 0 and at most 1.")

    @property
    def input_size(self) -> int:
        return self.num_bits

    @property
    def output_size(self) -> int:
        return self.num_bits

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        probability = self.value("pulse_probability", values, streams)
        if bool(((probability <= 0) | (probability > 1)).any()):
            raise ValueError("`pulse_probability` of a model must be above 0 and at most 1.")
        shape = (self.num_steps, batch_size, self.num_bits)
        pulses = streams.uniform(*shape) < probability.float()[:, None, None, None]
        pulses[:, 0] = True
        signs = 2.0 * streams.integers(2, *shape) - 1
        step = torch.arange(self.num_steps, device=streams.device)[:, None, None]
        latest = torch.where(pulses, step, 0).cummax(1).values
        x = torch.where(pulses, signs, 0).float()
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=signs.gather(1, latest).float())

    @classmethod
    def examples(cls) -> Sequence[FlipFlop]:
        return [cls(num_bits=2, num_steps=8, pulse_probability=0.3), cls(num_bits=1, num_steps=5)]
