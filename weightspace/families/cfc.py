"""The closed-form continuous-time network, whose units blend or damp their drive by a learned time gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, glorot, linear, uniform
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec

MODES = ("default", "no_gate", "pure")


@dataclass(frozen=True, kw_only=True)
class CfC(Family):
    """Closed-form continuous-time network with a linear read-out (Hasani et al., Nature Machine Intelligence 2022).

    One time unit per step and no backbone. With f_k = tanh(W_ik x + W_hk h + b_k), k = 1, 2, and t = sigmoid(W_it x +
    W_ht h + b_t), `mode` "default" is h' = (1 - t) * f_1 + t * f_2 and "no_gate" is h' = f_1 + t * f_2. `weight_ih`,
    `weight_hh` and `bias` have the rows f1, f2; `gate_*` are those of t. The authors' package has two maps in the place
    of t, of which only the sum acts: the sum is stored. Mode "pure", u = W_ih x + W_hh h + b, h' = a * (1 - u *
    exp(-|w_tau| - |u|)), has one map; scaling a unit scales a and the columns that read it. y = W_ho h + b_o.
    Initialisation as in that package: Glorot's uniform over W_i and W_h side by side, and for a and w_tau as matrices
    of one row.
    """

    hidden_size: int
    mode: Literal["default", "no_gate", "pure"] = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"`mode` (={self.mode!r}) of CfC must be one of {MODES}.")

    def declare(self) -> WeightSpec:
        pure = self.mode == "pure"
        lead, roles = ((), ("drive",)) if pure else (("head",), ("drive", "drive"))
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="gated"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        ends = {"ih": ("hidden", "input"), "hh": ("hidden", "hidden")}
        tensors = {f"weight_{k}": TensorSpec(axes=(*lead, *end), row_roles=roles) for k, end in ends.items()}
        tensors["bias"] = TensorSpec(axes=(*lead, "hidden"), row_roles=roles)
        if pure:
            tensors["w_tau"] = TensorSpec(axes=("hidden",), domain="even", row_roles=("timescale",))
            tensors["amplitude"] = TensorSpec(axes=("hidden",), row_roles=("gain",))
        else:
            axes["head"] = Axis(size=2, kind="channel", names=("f1", "f2"))
            tensors |= {f"gate_{k}": TensorSpec(axes=end, row_roles=("gate",)) for k, end in ends.items()}
            tensors["gate_bias"] = TensorSpec(axes=("hidden",), row_roles=("gate",))
        tensors["weight_ho"] = TensorSpec(axes=("output", "hidden"))
        tensors["bias_o"] = TensorSpec(axes=("output",))
        swap = "(f_1, f_2, t) and (f_2, f_1, -t) of a unit blend to the same; it swaps rows of the axis `head`."
        return WeightSpec(
            axes=axes,
            tensors=tensors,
            states={"h": "hidden"},
            gauges={"scale": self._scale()} if pure else {"sign": self._sign()},
            unrepresented={"swap": swap} if self.mode == "default" else {},
        )

    def _scale(self) -> Gauge:
        charges: dict[str, tuple[Charge, ...]] = {"weight_hh": (0, -1), "amplitude": (1,), "weight_ho": (0, -1)}
        return Gauge(axis="hidden", kind="nonzero", charges=charges, state_charges={"h": 1})

    def _sign(self) -> Gauge:
        charges: dict[str, tuple[Charge, ...]] = {
            "weight_ih": (0, 1, 0),
            "weight_hh": (0, 1, 1),
            "bias": (0, 1),
            "gate_hh": (0, 1),
            "weight_ho": (0, 1),
        }
        return Gauge(axis="hidden", kind="sign", charges=charges, state_charges={"h": 1})

    def init(self, generator: torch.Generator) -> Params:
        size, fan = self.hidden_size, self.input_size + self.hidden_size
        params = {name: uniform(self.spec.shape(name), size, generator) for name in ("weight_ho", "bias_o")}
        if self.mode == "pure":
            weights = {"weight": glorot((size, fan), generator)}
            params["bias"] = uniform((size,), fan, generator)
            params |= {name: glorot((1, size), generator)[0] for name in ("w_tau", "amplitude")}
        else:
            weight, bias = glorot((4, size, fan), generator), uniform((4, size), fan, generator)
            # The package's two maps of the gate, summed.
            weights = {"weight": weight[:2], "gate": weight[2] + weight[3]}
            params |= {"bias": bias[:2], "gate_bias": bias[2] + bias[3]}
        for name, weight in weights.items():
            params[f"{name}_ih"], params[f"{name}_hh"] = weight.split([self.input_size, size], -1)
        return {name: params[name].contiguous() for name in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        h = state["h"]
        drive = linear(x, params["weight_ih"], params["bias"]) + linear(h, params["weight_hh"])
        if self.mode == "pure":
            damped = drive * torch.exp(-(drive.abs() + params["w_tau"].abs()))
            return {"h": (1 - damped) * params["amplitude"]}
        t = torch.sigmoid(linear(x, params["gate_ih"], params["gate_bias"]) + linear(h, params["gate_hh"]))
        f_1, f_2 = (torch.tanh(part) for part in drive.chunk(2, dim=-1))
        return {"h": f_1 + t * (f_2 - f_1 if self.mode == "default" else f_2)}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=2, hidden_size=4, output_size=1, mode="no_gate"),
            cls(input_size=2, hidden_size=4, output_size=2, mode="pure"),
        ]
