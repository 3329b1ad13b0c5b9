"""The long short-term memory with diagonal recurrence, which can be solved in parallel over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, glorot, linear, uniform
from weightspace.spec import Axis, Gauge, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class ParaLSTM(Family):
    """LSTM whose units read only themselves, with a linear read-out (Danieli et al., ParaRNN, 2025, arXiv 2510.21450).

    Input and forget gate are coupled, and gates see the cell through peepholes p: f = sigmoid(a_f * h + B_f x +
    p_f * c + b_f), c' = f * c + (1 - f) * tanh(a_z * h + B_z x + b_z), o = sigmoid(a_o * h + B_o x + p_o * c' + b_o),
    h' = o * tanh(c'); y = W_ho h + b_o. Gate rows are f, z, o; `weight_hh` (gate, hidden) holds the diagonals a and
    `peephole` (peephole, hidden) holds p_f, p_o. Both start from N(0, 4/5), B from Glorot's uniform, b from 0 but
    b_f from 0 down to -1 over the units, as in the public code; B has one head here.
    """

    hidden_size: int

    def declare(self) -> WeightSpec:
        roles = ("timescale", "drive", "gain")
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="gated"),
            "output": Axis(size=self.output_size, kind="output"),
            "gate": Axis(size=3, kind="channel", names=("f", "z", "o")),
            "peephole": Axis(size=2, kind="channel", names=("f", "o")),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=("gate", "hidden", "input"), row_roles=roles),
            "weight_hh": TensorSpec(axes=("gate", "hidden"), row_roles=roles, diagonal=True),
            "peephole": TensorSpec(axes=("peephole", "hidden"), row_roles=("gate", "other"), diagonal=True),
            "bias": TensorSpec(axes=("gate", "hidden"), row_roles=roles),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        candidate, gates = (0, 1, 0), (1, 0, 1)
        sign = Gauge(
            axis="hidden",
            kind="sign",
            # A diagonal is read and written by one unit: the two signs of its z row cancel.
            charges={
                "weight_ih": (0, candidate, 0),
                "weight_hh": (0, gates),
                "peephole": (0, 1),
                "bias": (0, candidate),
                "weight_ho": (0, 1),
            },
            state_charges={"h": 1, "c": 1},
        )
        states = {"h": "hidden", "c": "hidden"}
        return WeightSpec(axes=axes, tensors=tensors, states=states, gauges={"sign": sign}, recurrence="diagonal")

    def init(self, generator: torch.Generator) -> Params:
        size = self.hidden_size
        bias = torch.zeros(3, size)
        bias[0] = -torch.linspace(0, 1, size)
        return {
            "weight_ih": glorot(self.spec.shape("weight_ih"), generator),
            "weight_hh": 0.8**0.5 * torch.randn(3, size, generator=generator),
            "peephole": 0.8**0.5 * torch.randn(2, size, generator=generator),
            "bias": bias,
            "weight_ho": uniform((self.output_size, size), size, generator),
            "bias_o": uniform((self.output_size,), size, generator),
        }

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        h, c = state["h"], state["c"]
        f_x, z_x, o_x = linear(x, params["weight_ih"], params["bias"]).chunk(3, dim=-1)
        a_f, a_z, a_o = params["weight_hh"].unbind(0)
        p_f, p_o = params["peephole"].unbind(0)
        z = torch.tanh(a_z * h + z_x)
        c = z + torch.sigmoid(a_f * h + p_f * c + f_x) * (c - z)
        return {"h": torch.sigmoid(a_o * h + p_o * c + o_x) * torch.tanh(c), "c": c}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [cls(input_size=3, hidden_size=5, output_size=2)]
