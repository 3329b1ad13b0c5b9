"""A linear functional of the past with a known memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split, Task
from zoo_builder.tasks.continuous import Continuous


@dataclass(frozen=True, kw_only=True)
class MemoryFunctional(Continuous):
    """What is y_t = sum over s = 0..t of rho(s) x_{t-s}? Inputs are standard normal; every step is scored.

    rho(s) = exp(-decay s) for the exponential kernel and rho(s) = (1 + s)^-decay for the polynomial one, whose memory
    fades more slowly than that of any stable linear recurrence. The linear functionals of Wang, Li and Li (Inverse
    approximation theory for nonlinear recurrent neural networks, ICLR 2024, arXiv 2305.19190).
    """

    kernel: Literal["exponential", "polynomial"] = "exponential"
    """How rho falls with the lag s: as exp(-decay s) or (1 + s)^-decay."""
    num_steps: int = field(default=32, metadata={"least": 1})
    """Length of a sequence."""
    decay: float = 0.5
    """Rate or exponent with which the memory fades, above 0."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-3.0, 3.0)
    splits_differ: ClassVar[bool] = False
    varying: ClassVar[tuple[str, ...]] = ("decay",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel not in ("exponential", "polynomial"):
            raise ValueError(f"`kernel` (={self.kernel!r}) must be 'exponential' or 'polynomial'.")
        if not (math.isfinite(self.decay) and self.decay > 0):
            raise ValueError(f"`decay` (={self.decay}) must be a finite number above 0.")

    @property
    def input_size(self) -> int:
        return 1

    @property
    def output_size(self) -> int:
        return 1

    def memory(self, decay: Tensor) -> Tensor:
        """rho(s), (models, lag), for decay (models,)."""
        lag = torch.arange(self.num_steps, dtype=decay.dtype, device=decay.device)
        if self.kernel == "exponential":
            return torch.exp(-decay[:, None] * lag)
        return (1 + lag) ** -decay[:, None]

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        decay = self.value("decay", values, streams)
        wrong = ~decay.isfinite() | (decay <= 0)
        if bool(wrong.any()):
            raise ValueError(f"`decay` (={decay[wrong][0]:g}) must be a finite number above 0.")
        x = streams.normal(self.num_steps, batch_size)
        target = torch.zeros_like(x)
        # Lag by lag: the last bits of a matrix product would depend on the number of models.
        for lag, rho in enumerate(self.memory(decay).to(x.dtype).unbind(1)):
            target[:, lag:] += rho[:, None, None] * x[:, : self.num_steps - lag]
        return Batch(x=x[..., None], start=x.new_zeros(len(streams), batch_size, 0), target=target[..., None])

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(num_steps=7, decay=0.3), cls(kernel="polynomial", num_steps=5, decay=1.1)]
