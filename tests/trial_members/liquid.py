"""The liquid time-constant network, whose synapses have midpoints and slopes: coefficients, not linear maps."""

from dataclasses import dataclass

import torch

from weightspace.families.base import Family, linear, uniform
from weightspace.spec import Axis, Gauge, TensorSpec, WeightSpec

SYNAPSE = {
    "w": {"domain": "positive", "row_roles": ("gain",)},
    # Two numbers of one role: the second has a slot of its own.
    "mu": {"row_roles": ("gate",)},
    "sigma": {"row_roles": ("gate",)},
    "erev": {"row_roles": ("drive",)},
}


@dataclass(frozen=True, kw_only=True)
class Liquid(Family):
    """Liquid time-constant network in fused form (Hasani et al., AAAI 2021, arXiv 2006.04439), `unfolds` times a step:

    v <- (c v + g v_leak + sum_j a_ij e_ij) / (c + g + sum_j a_ij), a_ij = w_ij sigmoid(sigma_ij (v_j - mu_ij)), with
    the sums over units and inputs; y = W_ho v + b_o.
    """

    hidden_size: int
    unfolds: int = 2

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="gated"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            name: TensorSpec(axes=("hidden", source), use="coefficient", **fields)
            for source, prefix in (("hidden", ""), ("input", "sensory_"))
            for name, fields in ((f"{prefix}{key}", value) for key, value in SYNAPSE.items())
        }
        tensors |= {
            "gleak": TensorSpec(axes=("hidden",), domain="positive", row_roles=("gain",)),
            "vleak": TensorSpec(axes=("hidden",)),
            "cm": TensorSpec(axes=("hidden",), domain="positive", row_roles=("timescale",)),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        charges = {"mu": (0, 1), "sigma": (0, 1), "erev": (1, 0), "sensory_erev": (1, 0), "vleak": (1,)}
        sign = Gauge(axis="hidden", kind="sign", charges={**charges, "weight_ho": (0, 1)}, state_charges={"v": 1})
        return WeightSpec(axes=axes, tensors=tensors, states={"v": "hidden"}, gauges={"sign": sign})

    def init(self, generator):
        ranges = {"w": (0.001, 1), "mu": (0.3, 0.8), "sigma": (3, 8), "erev": (-1, 1)}
        ranges |= {"gleak": (0.001, 1), "vleak": (-0.2, 0.2), "cm": (0.4, 0.6)}
        params = {}
        for name in self.spec.tensors:
            low, high = ranges.get(name.removeprefix("sensory_"), (0, 0))
            params[name] = low + (high - low) * torch.rand(self.spec.shape(name), generator=generator)
        return params | {"weight_ho": uniform(self.spec.shape("weight_ho"), self.hidden_size, generator)}

    def step(self, params, state, x, noise):
        v = state["v"]
        from_inputs = synapses(params, "sensory_", x)
        for _ in range(self.unfolds):
            current, conductance = (a + b for a, b in zip(synapses(params, "", v), from_inputs, strict=True))
            numerator = params["cm"] * v + params["gleak"] * params["vleak"] + current
            v = numerator / (params["cm"] + params["gleak"] + conductance)
        return {"v": v}

    def readout(self, params, state):
        return linear(state["v"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls):
        return [cls(input_size=2, hidden_size=4, output_size=2)]


def synapses(params, prefix, source):
    """Current and conductance (batch, hidden) that sources (batch, from) give."""
    w, mu, sigma, erev = (params[prefix + name] for name in SYNAPSE)
    active = w * torch.sigmoid(sigma * (source[:, None] - mu))
    return (active * erev).sum(-1), active.sum(-1)
