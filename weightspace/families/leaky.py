"""The leaky network with a trainable time constant in each neuron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.01),
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
UNITS = {"leaky_relu": "relu", "relu": "relu", "tanh": "tanh", "sigmoid": "gated"}
"""Function -> the nearest of the declared nonlinearities."""


@dataclass(frozen=True, kw_only=True)
class Leaky(Family):
    """Leaky neurons without self-connections and a linear read-out (Khajehabdollahi et al., ICLR 2024, 2309.12927).

    a = 1 / max(tau, 1), u = W_hh h + W_ih x + b with diag(W_hh) = 0, y = W_ho h + b_o. The non-linearity f stands
    outside the leak, h' = f((1 - a) * h + a * u), as in the paper's main model, or with `function_inside` inside it,
    h' = (1 - a) * h + a * f(u). tau (hidden) starts from U(1, 2), everything else from U(-1/sqrt(fan_in),
    1/sqrt(fan_in)). The stored tau may fall below 1 and the stored diagonal may be anything; `effective` has what acts.
    The paper draws the first state at random, here it is 0.
    """

    hidden_size: int
    nonlinearity: Literal["leaky_relu", "relu", "tanh", "sigmoid"] = "leaky_relu"
    function_inside: bool = False
    """Whether the non-linearity stands inside the leak."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonlinearity not in FUNCTIONS:
            known = tuple(FUNCTIONS)
            raise ValueError(f"`nonlinearity` (={self.nonlinearity!r}) of Leaky must be one of {known}.")

    def declare(self) -> WeightSpec:
        unit = UNITS[self.nonlinearity]
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity=unit),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "weight_hh": TensorSpec(axes=("hidden", "hidden")),
            "bias": TensorSpec(axes=("hidden",)),
            "tau": TensorSpec(axes=("hidden",), domain="at_least_1", row_roles=("timescale",)),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        charges: dict[str, tuple[Charge, ...]] = {"weight_ih": (1, 0), "weight_hh": (1, -1), "bias": (1,)}
        moves = partial(Gauge, axis="hidden", charges={**charges, "weight_ho": (0, -1)}, state_charges={"h": 1})
        # A sigmoid is neither odd nor homogeneous.
        gauges = {"tanh": {"sign": moves(kind="sign")}, "relu": {"scale": moves(kind="positive")}, "gated": {}}[unit]
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"}, gauges=gauges)

    def init(self, generator: torch.Generator) -> Params:
        params = {}
        for name in self.spec.tensors:
            fan = self.input_size if name == "weight_ih" else self.hidden_size
            params[name] = uniform(self.spec.shape(name), fan, generator)
        params["tau"] = 1 + torch.rand(self.hidden_size, generator=generator)
        return self.effective(params)

    def effective(self, params: Params) -> Params:
        no_self = 1 - torch.eye(self.hidden_size, dtype=params["tau"].dtype, device=params["tau"].device)
        return {**params, "weight_hh": params["weight_hh"] * no_self, "tau": params["tau"].clamp(min=1)}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        used, h = self.effective(params), state["h"]
        drive = linear(x, used["weight_ih"], used["bias"]) + linear(h, used["weight_hh"])
        function = FUNCTIONS[self.nonlinearity]
        if self.function_inside:
            return {"h": h + (function(drive) - h) / used["tau"]}
        return {"h": function(h + (drive - h) / used["tau"])}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=2, hidden_size=4, output_size=2, nonlinearity="relu"),
            cls(input_size=1, hidden_size=4, output_size=1, nonlinearity="tanh"),
            cls(input_size=2, hidden_size=4, output_size=1, function_inside=True),
            cls(input_size=2, hidden_size=3, output_size=2, nonlinearity="tanh", function_inside=True),
            cls(input_size=2, hidden_size=4, output_size=2, nonlinearity="sigmoid", function_inside=True),
        ]
