"""The second-order recurrent network whose weight tensor is a CP decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Gauge, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class CPRNN(Family):
    """Second-order network in CP form with a linear read-out (Lizaire et al., ICML 2024, arXiv 2406.05045).

    h' = tanh(C ((A h) * (B x)) + W_hh h + W_ih x + b), y = W_ho h + b_o, with A (rank, hidden), B (rank, input) and
    C (hidden, rank): the full second-order tensor is sum_r C[:, r] A[r, :] B[r, :]. Every tensor starts from
    U(-1/sqrt(hidden), 1/sqrt(hidden)), as in the paper.
    """

    hidden_size: int
    rank: int

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="tanh"),
            "rank": Axis(size=self.rank, kind="factor", permutable=True, nonlinearity="product"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "factor_a": TensorSpec(axes=("rank", "hidden")),
            "factor_b": TensorSpec(axes=("rank", "input")),
            "factor_c": TensorSpec(axes=("hidden", "rank")),
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "weight_hh": TensorSpec(axes=("hidden", "hidden")),
            "bias": TensorSpec(axes=("hidden",)),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        sign = Gauge(
            axis="hidden",
            kind="sign",
            charges={
                "factor_a": (0, 1),
                "factor_c": (1, 0),
                "weight_ih": (1, 0),
                "weight_hh": (1, 1),
                "bias": (1,),
                "weight_ho": (0, 1),
            },
            state_charges={"h": 1},
        )
        scale_b = Gauge(axis="rank", kind="nonzero", charges={"factor_a": (-1, 0), "factor_b": (1, 0)})
        scale_c = Gauge(axis="rank", kind="nonzero", charges={"factor_a": (-1, 0), "factor_c": (0, 1)})
        gauges = {"sign": sign, "scale_b": scale_b, "scale_c": scale_c}
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"}, gauges=gauges)

    def init(self, generator: torch.Generator) -> Params:
        return {name: uniform(self.spec.shape(name), self.hidden_size, generator) for name in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        h = state["h"]
        second_order = linear(h, params["factor_a"]) * linear(x, params["factor_b"])
        drive = linear(second_order, params["factor_c"], params["bias"])
        return {"h": torch.tanh(drive + linear(h, params["weight_hh"]) + linear(x, params["weight_ih"]))}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2, rank=4),
            cls(input_size=1, hidden_size=4, output_size=1, rank=6),
        ]
