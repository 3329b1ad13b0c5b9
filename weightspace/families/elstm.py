"""The element-wise long short-term memory, whose cell can be trained online and exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Gauge, Params, State, TensorSpec, WeightSpec

DEVIATION = 0.1
"""Standard deviation of the fresh params of forget gate and candidate."""


@dataclass(frozen=True, kw_only=True)
class ELSTM(Family):
    """LSTM whose cell reads only itself, with a linear read-out (Irie, Gopalakrishnan and Schmidhuber, Exploring the
    promise and limits of real-time recurrent learning, ICLR 2024, arXiv 2305.19044).

    f = sigmoid(F x + w_f * c + b_f), z = tanh(Z x + w_z * c + b_z), c' = f * c + (1 - f) * z,
    o = sigmoid(O x + W_o c' + b_o), h' = o * c'; y = W_ho h + b. Gate rows are f, z: `weight_ih` (gate, hidden, input)
    holds F and Z, `weight_hh` (gate, hidden) the diagonals w_f and w_z. The output gate reads all cells of its own
    step: `gate_ih` (hidden, input) is O, `gate_hh` (hidden, hidden) is W_o; but no later step reads h. F, Z, w_f, w_z
    and their biases start from N(0, 0.01), as in the public code (read second-hand), b_f is raised by `forget_bias`;
    output gate and read-out start as in torch.nn.Linear.
    """

    hidden_size: int
    forget_bias: float = 0.0

    def declare(self) -> WeightSpec:
        roles = ("timescale", "drive")
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="gated"),
            "output": Axis(size=self.output_size, kind="output"),
            "gate": Axis(size=2, kind="channel", names=("f", "z")),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=("gate", "hidden", "input"), row_roles=roles),
            "weight_hh": TensorSpec(axes=("gate", "hidden"), row_roles=roles, diagonal=True),
            "bias": TensorSpec(axes=("gate", "hidden"), row_roles=roles),
            "gate_ih": TensorSpec(axes=("hidden", "input"), row_roles=("gain",)),
            "gate_hh": TensorSpec(axes=("hidden", "hidden"), row_roles=("gain",)),
            "gate_bias": TensorSpec(axes=("hidden",), row_roles=("gain",)),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        sign = Gauge(
            axis="hidden",
            kind="sign",
            # A diagonal is read and written by one unit: the two signs of its z row cancel.
            charges={
                "weight_ih": (0, (0, 1), 0),
                "weight_hh": (0, (1, 0)),
                "bias": (0, (0, 1)),
                "gate_hh": (0, 1),
                "weight_ho": (0, 1),
            },
            state_charges={"c": 1, "h": 1},
        )
        states = {"c": "hidden", "h": "hidden"}
        return WeightSpec(axes=axes, tensors=tensors, states=states, gauges={"sign": sign}, recurrence="diagonal")

    def init(self, generator: torch.Generator) -> Params:
        size = self.hidden_size
        params = {
            name: DEVIATION * torch.randn(self.spec.shape(name), generator=generator)
            for name in ("weight_ih", "weight_hh", "bias")
        }
        params["bias"][0] += self.forget_bias
        for name in ("gate_ih", "gate_hh", "gate_bias", "weight_ho", "bias_o"):
            fan = self.input_size if name == "gate_ih" else size
            params[name] = uniform(self.spec.shape(name), fan, generator)
        return params

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        c = state["c"]
        f_x, z_x = linear(x, params["weight_ih"], params["bias"]).chunk(2, dim=-1)
        w_f, w_z = params["weight_hh"].unbind(0)
        z = torch.tanh(w_z * c + z_x)
        c = z + torch.sigmoid(w_f * c + f_x) * (c - z)
        gate = linear(x, params["gate_ih"], params["gate_bias"]) + linear(c, params["gate_hh"])
        return {"c": c, "h": torch.sigmoid(gate) * c}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [cls(input_size=3, hidden_size=5, output_size=2)]
