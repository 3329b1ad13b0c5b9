"""The minimal gated unit, which has a single gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Gauge, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class MGU(Family):
    """Minimal gated unit with a linear read-out (Zhou et al., 2016, arXiv 1603.09420).

    f = sigmoid(W_if x + W_hf h + b_f), n = tanh(W_in x + W_hn (f * h) + b_n), h' = (1 - f) * h + f * n;
    y = W_ho h + b_o. Gate rows are f, n. Flipping the sign of a unit flips its n row and the columns that read it.
    """

    hidden_size: int

    def declare(self) -> WeightSpec:
        roles = ("timescale", "drive")
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="gated"),
            "output": Axis(size=self.output_size, kind="output"),
            "gate": Axis(size=2, kind="channel", names=("f", "n")),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=("gate", "hidden", "input"), row_roles=roles),
            "weight_hh": TensorSpec(axes=("gate", "hidden", "hidden"), row_roles=roles),
            "bias": TensorSpec(axes=("gate", "hidden"), row_roles=roles),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        sign = Gauge(
            axis="hidden",
            kind="sign",
            charges={
                "weight_ih": (0, (0, 1), 0),
                "weight_hh": (0, (0, 1), 1),
                "bias": (0, (0, 1)),
                "weight_ho": (0, 1),
            },
            state_charges={"h": 1},
        )
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"}, gauges={"sign": sign})

    def init(self, generator: torch.Generator) -> Params:
        return {name: uniform(self.spec.shape(name), self.hidden_size, generator) for name in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        h = state["h"]
        f_x, n_x = linear(x, params["weight_ih"], params["bias"]).chunk(2, dim=-1)
        f = torch.sigmoid(f_x + linear(h, params["weight_hh"][0]))
        n = torch.tanh(n_x + linear(f * h, params["weight_hh"][1]))
        return {"h": h + f * (n - h)}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [cls(input_size=3, hidden_size=5, output_size=2)]
