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
    W_ht h + b_t), `mode` "default" is h' = (1 - t) * f_1 + t * f_2 and "no_gate" is h' = f_1 + t * f_2; gate rows are
    f1, f2, t. The authors' package has two maps in the place of t, of which only the sum acts: the sum is stored. Mode
    "pure", u = W_ih x + W_hh h + b, h' = a * (1 - u * exp(-|w_tau| - |u|)), has one map; scaling a unit scales a and
    the columns that read it. y = W_ho h + b_o. Initialisation as in that package: Glorot's uniform over W_i and W_h
    side by side, and for a and w_tau as matrices of one row.
    """

    hidden_size: int
    mode: Literal["default", "no_gate", "pure"] = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"`mode` (={self.mode!r}) of CfC must be one of {MODES}.")

    def declare(self) -> WeightSpec:
        pure = self.mode == "pure"
        gated = () if pure else ("gate",)
        roles = ("drive",) if pure else ("drive", "drive", "gate")
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="gated"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=(*gated, "hidden", "input"), row_roles=roles),
            "weight_hh": TensorSpec(axes=(*gated, "hidden", "hidden"), row_roles=roles),
            "bias": TensorSpec(axes=(*gated, "hidden"), row_roles=roles),
        }
        if pure:
            tensors["w_tau"] = TensorSpec(axes=("hidden",), domain="even", row_roles=("timescale",))
            tensors["amplitude"] = TensorSpec(axes=("hidden",), row_roles=("gain",))
        else:
            axes["gate"] = Axis(size=3, kind="channel", names=("f1", "f2", "t"))
        tensors["weight_ho"] = TensorSpec(axes=("output", "hidden"))
        tensors["bias_o"] = TensorSpec(axes=("output",))
        gauges = {"scale": self._scale()} if pure else {"sign": self._sign()}
        half = "(f_1, f_2, t) and (f_2, f_1, -t) of a unit blend to the same; it swaps rows of the axis `gate`."
        return WeightSpec(
            axes=axes,
            tensors=tensors,
            states={"h": "hidden"},
            gauges=gauges,
            unrepresented={"swap": half} if self.mode == "default" else {},
        )

    def _scale(self) -> Gauge:
        charges: dict[str, tuple[Charge, ...]] = {"weight_hh": (0, -1), "amplitude": (1,), "weight_ho": (0, -1)}
        return Gauge(axis="hidden", kind="nonzero", charges=charges, state_charges={"h": 1})

    def _sign(self) -> Gauge:
        heads = (1, 1, 0)
        charges: dict[str, tuple[Charge, ...]] = {
            "weight_ih": (0, heads, 0),
            "weight_hh": (0, heads, 1),
            "bias": (0, heads),
            "weight_ho": (0, 1),
        }
        return Gauge(axis="hidden", kind="sign", charges=charges, state_charges={"h": 1})

    def init(self, generator: torch.Generator) -> Params:
        size, fan = self.hidden_size, self.input_size + self.hidden_size
        params: Params = {}
        if self.mode == "pure":
            weight, bias = glorot((size, fan), generator), uniform((size,), fan, generator)
            params = {name: glorot((1, size), generator)[0] for name in ("w_tau", "amplitude")}
        else:
            # The package's two maps of the gate, summed.
            weight, bias = glorot((4, size, fan), generator), uniform((4, size), fan, generator)
            weight, bias = (torch.cat([part[:2], part[2:].sum(0, keepdim=True)]) for part in (weight, bias))
        params["weight_ih"], params["weight_hh"] = weight[..., : self.input_size], weight[..., self.input_size :]
        params["bias"] = bias
        params |= {name: uniform(self.spec.shape(name), size, generator) for name in ("weight_ho", "bias_o")}
        return {name: params[name].contiguous() for name in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        drive = linear(x, params["weight_ih"], params["bias"]) + linear(state["h"], params["weight_hh"])
        if self.mode == "pure":
            damped = drive * torch.exp(-(drive.abs() + params["w_tau"].abs()))
            return {"h": (1 - damped) * params["amplitude"]}
        first, second, gate = drive.chunk(3, dim=-1)
        f_1, f_2, t = torch.tanh(first), torch.tanh(second), torch.sigmoid(gate)
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
