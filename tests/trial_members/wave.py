"""The wave network, whose state lies on channels and sites of a ring."""

from dataclasses import dataclass

import torch

from weightspace.families.base import Family, linear, uniform
from weightspace.spec import Axis, Gauge, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class Wave(Family):
    """Waves on a ring of sites (after Keller et al., wave RNN, ICLR 2024, arXiv 2309.08045).

    h'(c, s) = tanh(sum_dt K(c, d, t) h(d, s + t - 1) + [s = 0] sum_i U(c, i) x_i + b_c), with three taps t;
    y_o = sum_cs V(o, c, s) h(c, s) + b_o.
    """

    hidden_size: int
    sites: int

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "channel": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="tanh"),
            "site": Axis(size=self.sites, kind="factor"),
            "tap": Axis(size=3, kind="factor"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "kernel": TensorSpec(axes=("channel", "channel", "tap")),
            "weight_ih": TensorSpec(axes=("channel", "input")),
            "bias": TensorSpec(axes=("channel",)),
            "weight_ho": TensorSpec(axes=("output", "channel", "site")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        charges = {"kernel": (1, 1, 0), "weight_ih": (1, 0), "bias": (1,), "weight_ho": (0, 1, 0)}
        sign = Gauge(axis="channel", kind="sign", charges=charges, state_charges={"h": 1})
        return WeightSpec(axes=axes, tensors=tensors, states={"h": ("channel", "site")}, gauges={"sign": sign})

    def init(self, generator):
        return {name: uniform(self.spec.shape(name), 3 * self.hidden_size, generator) for name in self.spec.tensors}

    def step(self, params, state, x, noise):
        h = state["h"].unflatten(-1, self.spec.state_shape("h"))
        near = torch.stack([h.roll(1 - tap, -1) for tap in range(3)], dim=-1)
        drive = torch.einsum("cdt,bdst->bcs", params["kernel"], near) + params["bias"][:, None]
        first = torch.arange(self.sites, device=x.device) == 0
        drive = drive + linear(x, params["weight_ih"])[..., None] * first
        return {"h": torch.tanh(drive).flatten(1)}

    def readout(self, params, state):
        return linear(state["h"], params["weight_ho"].flatten(1), params["bias_o"])

    @classmethod
    def examples(cls):
        return [cls(input_size=2, hidden_size=3, output_size=2, sites=4)]
