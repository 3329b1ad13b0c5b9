"""The noisy rate network in continuous time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from weightspace.families.base import Noise, linear
from weightspace.families.noisy import Noisy
from weightspace.spec import Params, State


@dataclass(frozen=True, kw_only=True)
class NoisyRNN(Noisy):
    """Noisy rates in continuous time (Krishna et al., ICLR 2024, Sufficient conditions for offline reactivation).

    r' = r + alpha (relu(W_hh r + W_ih x) - r) + noise eta, eta ~ N(0, 1); see `Noisy` for start and read-out. The
    public code of the authors draws eta from U[0, 1), which adds a drift: here it is Gaussian, as in the paper.
    """

    unit: ClassVar = "relu"
    gauge_kind: ClassVar = "positive"

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        r = state["r"]
        rate = torch.relu(linear(x, params["weight_ih"]) + linear(r, params["weight_hh"]))
        return {"r": self.noised((1 - self.alpha) * r + self.alpha * rate, noise.get("eta"))}

    @classmethod
    def examples(cls) -> list[Self]:
        return [
            cls(input_size=2, hidden_size=5, output_size=3, start_size=3),
            cls(input_size=2, hidden_size=3, output_size=2, alpha=0.2, noise=0.0, start_size=2),
            cls(input_size=2, hidden_size=4, output_size=2, noise=0.3),
        ]
