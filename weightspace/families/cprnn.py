"""The second-order recurrent network whose weight tensor is a CP decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Gauge, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class CPRNN(Family):
    """Second-order network in CP form with a linear read-out (Lizaire et al., ICML 2024, arXiv 2406.05045).

    h' = tanh(C ((A h) * (B x)) + W_hh h + W_ih x + b), y = W_ho h + b_o, with A (rank, hidden), B (rank, input) and
    C (hidden, rank): the full second-order tensor is sum_r C[:, r] A[r, :] B[r, :], and rank 0 leaves it
    out. Every tensor starts from U(-1/sqrt(hidden), 1/sqrt(hidden)), as in the paper.
    """

    hidden_size: int
    rank: int = field(metadata={"least": 0})

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="tanh"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "weight_hh": TensorSpec(axes=("hidden", "hidden")),
            "bias": TensorSpec(axes=("hidden",)),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        charges: dict[str, tuple[int, ...]] = {
            "weight_ih": (1, 0),
            "weight_hh": (1, 1),
            "bias": (1,),
            "weight_ho": (0, 1),
        }
        gauges = {}
        if self.rank:
            rank = Axis(size=self.rank, kind="factor", permutable=True, nonlinearity="product")
            axes = {"input": axes["input"], "hidden": axes["hidden"], "rank": rank, "output": axes["output"]}
            factors = {
                "factor_a": TensorSpec(axes=("rank", "hidden")),
                "factor_b": TensorSpec(axes=("rank", "input")),
                "factor_c": TensorSpec(axes=("hidden", "rank")),
            }
            tensors = factors | tensors
            charges = {"factor_a": (0, 1), "factor_c": (1, 0), **charges}
            scale_b = Gauge(axis="rank", kind="nonzero", charges={"factor_a": (-1, 0), "factor_b": (1, 0)})
            scale_c = Gauge(axis="rank", kind="nonzero", charges={"factor_a": (-1, 0), "factor_c": (0, 1)})
            gauges = {"scale_b": scale_b, "scale_c": scale_c}
        sign = Gauge(axis="hidden", kind="sign", charges=charges, state_charges={"h": 1})
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"}, gauges={"sign": sign, **gauges})

    def init(self, generator: torch.Generator) -> Params:
        return {name: uniform(self.spec.shape(name), self.hidden_size, generator) for name in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        h = state["h"]
        drive = linear(x, params["weight_ih"])
        if self.rank == 0:
            return {"h": torch.tanh(linear(h, params["weight_hh"], params["bias"]) + drive)}
        second_order = linear(h, params["factor_a"]) * linear(x, params["factor_b"])
        drive = linear(second_order, params["factor_c"], params["bias"]) + linear(h, params["weight_hh"]) + drive
        return {"h": torch.tanh(drive)}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2, rank=4),
            cls(input_size=1, hidden_size=4, output_size=1, rank=6),
            cls(input_size=2, hidden_size=3, output_size=1, rank=0),
        ]
