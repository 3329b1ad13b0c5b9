"""The gated recurrent unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class GRU(Family):
    """Stacked gated recurrent units with a linear read-out (Cho et al., EMNLP 2014; the reset of torch.nn.GRU).

    r = sigmoid(W_ir x + W_hr h + b_r), z = sigmoid(W_iz x + W_hz h + b_z),
    n = tanh(W_in x + b_n + r * (W_hn h + b_hn)), h' = (1 - z) * n + z * h; y = W_ho h + b_o.
    Gate rows are r, z, n. Of the biases only b_n and b_hn act apart; the others are stored as sums.
    """

    hidden_size: int
    num_layers: int = 1

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "output": Axis(size=self.output_size, kind="output"),
            "gate": Axis(size=3, kind="channel", names=("r", "z", "n")),
        }
        roles = ("gate", "timescale", "drive")
        tensors, states, gauges = {}, {}, {}
        for layer in range(self.num_layers):
            hidden, below = f"hidden.{layer}", f"hidden.{layer - 1}" if layer else "input"
            axes[hidden] = Axis(size=self.hidden_size, kind="hidden", permutable=True, layer=layer, nonlinearity="gru")
            tensors[f"weight_ih.{layer}"] = TensorSpec(axes=("gate", hidden, below), row_roles=roles)
            tensors[f"weight_hh.{layer}"] = TensorSpec(axes=("gate", hidden, hidden), row_roles=roles)
            tensors[f"bias.{layer}"] = TensorSpec(axes=("gate", hidden), row_roles=roles)
            tensors[f"bias_hn.{layer}"] = TensorSpec(axes=(hidden,), row_roles=("other",))
            states[f"h.{layer}"] = hidden
            gauges[f"sign.{layer}"] = self._gauge(layer)
        tensors["weight_ho"] = TensorSpec(axes=("output", f"hidden.{self.num_layers - 1}"))
        tensors["bias_o"] = TensorSpec(axes=("output",))
        return WeightSpec(axes=axes, tensors=tensors, states=states, gauges=gauges)

    def _gauge(self, layer: int) -> Gauge:
        candidate = (0, 0, 1)
        charges: dict[str, tuple[Charge, ...]] = {
            f"weight_ih.{layer}": (0, candidate, 0),
            f"weight_hh.{layer}": (0, candidate, 1),
            f"bias.{layer}": (0, candidate),
            f"bias_hn.{layer}": (1,),
        }
        if layer == self.num_layers - 1:
            charges["weight_ho"] = (0, 1)
        else:
            charges[f"weight_ih.{layer + 1}"] = (0, 0, 1)
        return Gauge(axis=f"hidden.{layer}", kind="sign", charges=charges, state_charges={f"h.{layer}": 1})

    def init(self, generator: torch.Generator) -> Params:
        return {name: uniform(self.spec.shape(name), self.hidden_size, generator) for name in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        new = {}
        for layer in range(self.num_layers):
            h = state[f"h.{layer}"]
            from_input = linear(x, params[f"weight_ih.{layer}"], params[f"bias.{layer}"])
            r_x, z_x, n_x = from_input.chunk(3, dim=-1)
            r_h, z_h, n_h = linear(h, params[f"weight_hh.{layer}"]).chunk(3, dim=-1)
            z = torch.sigmoid(z_x + z_h)
            n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * (n_h + params[f"bias_hn.{layer}"]))
            x = n + z * (h - n)
            new[f"h.{layer}"] = x
        return new

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state[f"h.{self.num_layers - 1}"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=2, hidden_size=4, output_size=2, num_layers=2),
        ]
