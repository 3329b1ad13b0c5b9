"""A network whose decays are the sizes of its params, of either sign; and which may have no hidden layer."""

from dataclasses import dataclass, field

import torch

from weightspace.families.base import Family, linear, uniform
from weightspace.spec import Axis, Gauge, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class Decays(Family):
    """h' = exp(-|k|) h + tanh(W_hh h + W_ih x + b), y = W_ho h + b_o; with `self_layers` 0 without W_hh."""

    hidden_size: int
    self_layers: int = field(default=1, metadata={"least": 0})

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="tanh"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "bias": TensorSpec(axes=("hidden",)),
            "decay": TensorSpec(axes=("hidden",), domain="even", row_roles=("timescale",), diagonal=True),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        charges = {"weight_ih": (1, 0), "bias": (1,), "weight_ho": (0, 1)}
        if self.self_layers:
            tensors["weight_hh"] = TensorSpec(axes=("hidden", "hidden"))
            charges["weight_hh"] = (1, 1)
        sign = Gauge(axis="hidden", kind="sign", charges=charges, state_charges={"h": 1})
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"}, gauges={"sign": sign})

    def init(self, generator):
        return {name: uniform(self.spec.shape(name), self.hidden_size, generator) for name in self.spec.tensors}

    def step(self, params, state, x, noise):
        drive = linear(x, params["weight_ih"], params["bias"])
        if self.self_layers:
            drive = drive + linear(state["h"], params["weight_hh"])
        return {"h": torch.exp(-params["decay"].abs()) * state["h"] + torch.tanh(drive)}

    def readout(self, params, state):
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls):
        sizes = {"input_size": 2, "hidden_size": 4, "output_size": 2}
        return [cls(**sizes), cls(**sizes, self_layers=0)]
