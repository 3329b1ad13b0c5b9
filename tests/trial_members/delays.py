"""The network of many delays, whose step is a sum of as many products."""

from dataclasses import dataclass

import torch

from weightspace.families.base import Family, linear, uniform
from weightspace.spec import Axis, Gauge, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class Delays(Family):
    """h' = tanh(sum_k W_k h(t - k) + U x + b), y = W_ho h + b_o (after Lin et al., NARX, IEEE TNN 1996).

    W_k is `weight_hh[:, k]`; the state holds h of the last `lags` steps, the latest first.
    """

    hidden_size: int
    lags: int = 40

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "lag": Axis(size=self.lags, kind="factor"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="tanh"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "weight_hh": TensorSpec(axes=("hidden", "lag", "hidden")),
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "bias": TensorSpec(axes=("hidden",)),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        charges = {"weight_hh": (1, 0, 1), "weight_ih": (1, 0), "bias": (1,), "weight_ho": (0, 1)}
        sign = Gauge(axis="hidden", kind="sign", charges=charges, state_charges={"past": 1})
        return WeightSpec(axes=axes, tensors=tensors, states={"past": ("lag", "hidden")}, gauges={"sign": sign})

    def init(self, generator):
        fan = self.lags * self.hidden_size
        return {name: uniform(self.spec.shape(name), fan, generator) for name in self.spec.tensors}

    def step(self, params, state, x, noise):
        drive = linear(x, params["weight_ih"], params["bias"])
        past = state["past"].chunk(self.lags, dim=-1)
        for lag, h in enumerate(past):
            drive = drive + linear(h, params["weight_hh"][:, lag])
        return {"past": torch.cat([torch.tanh(drive), *past[:-1]], dim=-1)}

    def readout(self, params, state):
        return linear(state["past"][:, : self.hidden_size], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls):
        return [cls(input_size=1, hidden_size=2, output_size=1)]
