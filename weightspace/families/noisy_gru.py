"""The noisy gated network in continuous time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from weightspace.families.base import Noise, linear
from weightspace.families.noisy import Noisy
from weightspace.spec import Params, State


@dataclass(frozen=True, kw_only=True)
class NoisyGRU(Noisy):
    """Noisy gated units in continuous time (Krishna et al., ICLR 2024, Sufficient conditions for offline reactivation).

    g = sigmoid(W_hg r + W_ig x), z = sigmoid(W_hz r + W_iz x),
    r' = r + alpha (1 - z) * (tanh(W_hn (g * r) + W_in x) - r) + noise eta, eta ~ N(0, 1); see `Noisy` for start and
    read-out. Gate rows are g, z, n.
    """

    gates: ClassVar = ("g", "z", "n")
    roles: ClassVar = ("gate", "timescale", "drive")
    unit: ClassVar = "gated"
    gauge_kind: ClassVar = "sign"
    target_charge: ClassVar = (0, 0, 1)

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        r = state["r"]
        g_x, z_x, n_x = linear(x, params["weight_ih"]).chunk(3, dim=-1)
        g_r, z_r = linear(r, params["weight_hh"][:2]).chunk(2, dim=-1)
        candidate = torch.tanh(linear(torch.sigmoid(g_x + g_r) * r, params["weight_hh"][2]) + n_x)
        step = self.alpha * (1 - torch.sigmoid(z_x + z_r))
        return {"r": self.noised(r + step * (candidate - r), noise.get("eta"))}

    @classmethod
    def examples(cls) -> list[Self]:
        return [
            cls(input_size=2, hidden_size=4, output_size=3, start_size=3),
            cls(input_size=1, hidden_size=3, output_size=2, alpha=0.2, noise=0.0),
        ]
