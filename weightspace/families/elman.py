"""The Elman network, the simplest recurrent network with a dense recurrent matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class Elman(Family):
    """Stacked Elman layers with a linear read-out (Elman, Finding structure in time, Cognitive Science 1990).

    h_l' = f(W_ih_l x_l + W_hh_l h_l + b_l), x_0 the input and x_l = h_{l-1}' above; y = W_ho h_L + b_o; f tanh or relu.
    The two biases of torch.nn.RNN act only through their sum, which is what `bias` holds.
    """

    hidden_size: int
    num_layers: int = 1
    nonlinearity: Literal["tanh", "relu"] = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"`nonlinearity` (={self.nonlinearity!r}) must be 'tanh' or 'relu'.")

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors, states, gauges = {}, {}, {}
        for layer in range(self.num_layers):
            hidden, below = f"hidden.{layer}", f"hidden.{layer - 1}" if layer else "input"
            axes[hidden] = Axis(
                size=self.hidden_size, kind="hidden", permutable=True, layer=layer, nonlinearity=self.nonlinearity
            )
            tensors[f"weight_ih.{layer}"] = TensorSpec(axes=(hidden, below))
            tensors[f"weight_hh.{layer}"] = TensorSpec(axes=(hidden, hidden))
            tensors[f"bias.{layer}"] = TensorSpec(axes=(hidden,))
            states[f"h.{layer}"] = hidden
            gauges[f"{'sign' if self.nonlinearity == 'tanh' else 'scale'}.{layer}"] = self._gauge(layer)
        tensors["weight_ho"] = TensorSpec(axes=("output", f"hidden.{self.num_layers - 1}"))
        tensors["bias_o"] = TensorSpec(axes=("output",))
        return WeightSpec(axes=axes, tensors=tensors, states=states, gauges=gauges)

    def _gauge(self, layer: int) -> Gauge:
        charges: dict[str, tuple[Charge, ...]] = {
            f"weight_ih.{layer}": (1, 0),
            f"weight_hh.{layer}": (1, -1),
            f"bias.{layer}": (1,),
        }
        above = "weight_ho" if layer == self.num_layers - 1 else f"weight_ih.{layer + 1}"
        charges[above] = (0, -1)
        kind: Literal["sign", "positive"] = "sign" if self.nonlinearity == "tanh" else "positive"
        return Gauge(axis=f"hidden.{layer}", kind=kind, charges=charges, state_charges={f"h.{layer}": 1})

    def init(self, generator: torch.Generator) -> Params:
        return {name: uniform(self.spec.shape(name), self.hidden_size, generator) for name in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        new = {}
        for layer in range(self.num_layers):
            drive = linear(x, params[f"weight_ih.{layer}"], params[f"bias.{layer}"])
            drive = drive + linear(state[f"h.{layer}"], params[f"weight_hh.{layer}"])
            x = torch.tanh(drive) if self.nonlinearity == "tanh" else torch.relu(drive)
            new[f"h.{layer}"] = x
        return new

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state[f"h.{self.num_layers - 1}"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=2, hidden_size=4, output_size=3, nonlinearity="relu"),
            cls(input_size=2, hidden_size=4, output_size=2, num_layers=2),
            cls(input_size=2, hidden_size=3, output_size=1, num_layers=2, nonlinearity="relu"),
        ]
