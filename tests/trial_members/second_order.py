"""The second-order recurrent network with its full weight tensor."""

from dataclasses import dataclass

import torch

from weightspace.families.base import Family, linear, uniform
from weightspace.spec import Axis, Gauge, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Family):
    """h' = tanh(T h x + W_hh h + W_ih x + b), y = W_ho h + b_o (Giles et al., Neural Computation 1992).

    T (hidden, hidden, input) weighs products of a unit and an input; without `first_order` W_hh and W_ih are left out.
    """

    hidden_size: int
    first_order: bool = True

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="tanh"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "weight_hhi": TensorSpec(axes=("hidden", "hidden", "input")),
            "bias": TensorSpec(axes=("hidden",)),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        charges = {"weight_hhi": (1, 1, 0), "bias": (1,), "weight_ho": (0, 1)}
        if self.first_order:
            tensors["weight_hh"] = TensorSpec(axes=("hidden", "hidden"))
            tensors["weight_ih"] = TensorSpec(axes=("hidden", "input"))
            charges |= {"weight_hh": (1, 1), "weight_ih": (1, 0)}
        sign = Gauge(axis="hidden", kind="sign", charges=charges, state_charges={"h": 1})
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"}, gauges={"sign": sign})

    def init(self, generator):
        return {name: uniform(self.spec.shape(name), self.hidden_size, generator) for name in self.spec.tensors}

    def step(self, params, state, x, noise):
        drive = torch.einsum("kji,bj,bi->bk", params["weight_hhi"], state["h"], x) + params["bias"]
        if self.first_order:
            drive = drive + linear(state["h"], params["weight_hh"]) + linear(x, params["weight_ih"])
        return {"h": torch.tanh(drive)}

    def readout(self, params, state):
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls):
        sizes = {"input_size": 3, "hidden_size": 5, "output_size": 2}
        return [cls(**sizes), cls(**sizes, first_order=False)]
