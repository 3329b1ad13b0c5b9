"""The liquid time-constant network, whose synapses are functions of pairs of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.families.base import Family, Least, Noise, linear
from weightspace.families.pairs import paired, skewed, summed
from weightspace.families.wiring import least_units, refuse, wired
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec

SYNAPSE: dict[str, dict[str, Any]] = {
    "w": {"row_roles": ("gain",)},
    "mu": {"row_roles": ("gate",)},
    "sigma": {"row_roles": ("gate",)},
    "erev": {"row_roles": ("drive",)},
}
SOURCES = {"": "hidden", "sensory_": "input"}
"""Prefix of a synapse's tensors -> the axis of its sources."""
POSITIVE = ("w", "sensory_w", "gleak", "cm")
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class LTC(Family):
    """Liquid time-constant network (Hasani et al., AAAI 2021, arXiv 2006.04439) in the fused form of its public code.

    n times a step, v <- (n c v + g v_leak + sum_j a_ij e_ij) / (n c + g + sum_j a_ij + 1e-8), with sums over units and
    inputs, a_ij = w_ij m_ij sigmoid(sigma_ij (v_j - mu_ij)) and n = `unfolds`; y_k = W_ho[k, k] v_k + b_o of the motor
    units, the first ones. w, g and c are the softplus of the stored `w`, `gleak` and `cm`; `effective` has what acts.
    The masks m are drawn for each model, as `wiring` says (see `families.wiring`). Scaling a unit scales sigma and mu
    of the synapses that it gives, e of those that it receives, and its leak. The public code also has an affine map
    of the inputs, which sigma and mu contain here; initial ranges are its own.
    """

    hidden_size: int
    wiring: Literal["full", "random", "ncp"] = "full"
    sparsity: float = 0.0
    unfolds: int = 6

    def __post_init__(self) -> None:
        refuse(self.wiring, self.sparsity)
        super().__post_init__()

    @classmethod
    def least(cls, config: Mapping[str, Any]) -> Mapping[str, Least]:
        units, outputs = least_units(config["wiring"], config["output_size"]), config["output_size"]
        has = "inter, command and motor units" if units > outputs else "a motor unit for each output"
        reason = f"the wiring '{config['wiring']}' has {has}, and `output_size` is {outputs}"
        return {"hidden_size": Least(units, reason)}

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="gated"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            prefix + name: TensorSpec(axes=("hidden", source), use="coefficient", mask=f"mask_{source}", **fields)
            for prefix, source in SOURCES.items()
            for name, fields in SYNAPSE.items()
        }
        tensors |= {f"mask_{source}": TensorSpec(axes=("hidden", source), role="mask") for source in SOURCES.values()}
        tensors |= {
            "gleak": TensorSpec(axes=("hidden",), row_roles=("gain",)),
            "vleak": TensorSpec(axes=("hidden",)),
            "cm": TensorSpec(axes=("hidden",), row_roles=("timescale",)),
            "weight_ho": TensorSpec(axes=("output", "hidden"), mask="mask_output"),
            "mask_output": TensorSpec(axes=("output", "hidden"), role="mask"),
            "bias_o": TensorSpec(axes=("output",)),
        }
        charges: dict[str, tuple[Charge, ...]] = {"mu": (0, 1), "sigma": (0, -1), "weight_ho": (0, -1), "vleak": (1,)}
        charges |= {"erev": (1, 0), "sensory_erev": (1, 0)}
        return WeightSpec(
            axes=axes,
            tensors=tensors,
            states={"v": "hidden"},
            gauges={"scale": Gauge(axis="hidden", kind="nonzero", charges=charges, state_charges={"v": 1})},
            unrepresented={"shift": "v + a computes the same, up to the 1e-8; it shifts, and gauges multiply."},
        )

    @cached_property
    def effective_spec(self) -> WeightSpec:
        """The spec of `effective`, in which conductances and capacitances are positive."""
        positive = {name: replace(self.spec.tensors[name], domain="positive") for name in POSITIVE}
        return replace(self.spec, tensors={**self.spec.tensors, **positive})

    def init(self, generator: torch.Generator) -> Params:
        ranges = {"w": (0.001, 1.0), "mu": (0.3, 0.8), "sigma": (3.0, 8.0)}
        ranges |= {"gleak": (0.001, 1.0), "vleak": (-0.2, 0.2), "cm": (0.4, 0.6), "weight_ho": (1.0, 1.0)}
        sizes = (self.input_size, self.hidden_size, self.output_size)
        wiring = wired(self.wiring, self.sparsity, *sizes, generator)
        params = {"erev": wiring.recurrent, "sensory_erev": wiring.sensory}
        params |= {"mask_hidden": wiring.recurrent.abs(), "mask_input": wiring.sensory.abs()}
        params["mask_output"] = torch.eye(self.output_size, self.hidden_size)
        for name in self.spec.tensors:
            if name not in params:
                low, high = ranges.get(name.removeprefix("sensory_"), (0.0, 0.0))
                params[name] = low + (high - low) * torch.rand(self.spec.shape(name), generator=generator)
        return {name: self._masked(params, name) for name in self.spec.tensors}

    def _masked(self, params: Params, name: str) -> Tensor:
        mask = self.spec.tensors[name].mask
        return params[name] if mask is None else params[name] * params[mask]

    def effective(self, params: Params) -> Params:
        used = {**params, **{name: F.softplus(params[name]) for name in POSITIVE}}
        return {name: self._masked(used, name) for name in params}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        used, v = self.effective(params), state["v"]
        recurrent, sensory = (self._synapses(used, prefix) for prefix in SOURCES)
        current_in, conductance_in = self._flows(sensory, x)
        current_in = current_in + used["gleak"] * used["vleak"]
        capacitance = self.unfolds * used["cm"]
        conductance_in = conductance_in + (capacitance + used["gleak"] + EPSILON)
        for _ in range(self.unfolds):
            current, conductance = self._flows(recurrent, v)
            v = (v * capacitance + current + current_in) / (conductance + conductance_in)
        return {"v": v}

    def _synapses(self, used: Params, prefix: str) -> dict[str, Tensor]:
        """Tensors of the synapses (pair), in the order of `paired`, with the current w e of an open one."""
        w, mu, sigma, erev = (skewed(used[prefix + name]) for name in SYNAPSE)
        return {"w": w, "mu": mu, "sigma": sigma, "current": w * erev}

    def _flows(self, synapses: dict[str, Tensor], source: Tensor) -> tuple[Tensor, Tensor]:
        """Currents and conductances (batch, hidden) that sources (batch, from) cause."""
        open_share = torch.sigmoid((paired(source, self.hidden_size) - synapses["mu"]) * synapses["sigma"])
        current, conductance = open_share * synapses["current"], open_share * synapses["w"]
        return summed(current, self.hidden_size), summed(conductance, self.hidden_size)

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["v"], self._masked(params, "weight_ho"), params["bias_o"])

    @property
    def numbers_per_step(self) -> int:
        # Every synapse opens anew at every unfold.
        return self.unfolds * self.hidden_size**2 + self.spec.numbers_per_step

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=2, hidden_size=4, output_size=2, unfolds=2),
            cls(input_size=3, hidden_size=4, output_size=1, wiring="random", sparsity=0.25, unfolds=1),
            cls(input_size=2, hidden_size=5, output_size=1, wiring="ncp", sparsity=0.3, unfolds=2),
        ]
