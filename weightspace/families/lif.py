"""The recurrent network of leaky integrate-and-fire neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, gamma, linear, uniform
from weightspace.families.spike import spike
from weightspace.spec import Axis, Params, State, TensorSpec, WeightSpec

THRESHOLD = 1.0
"""Potential above which a neuron fires."""


@dataclass(frozen=True, kw_only=True)
class LIF(Family):
    """Leaky integrate-and-fire neurons with a linear read-out of spikes (Bellec et al., Nature Communications 2020).

    s = H(v - 1), v' = decay * v + W_hh s + W_ih x + b - s, decay = exp(-1 / max(tau, 1)); the last term is the reset,
    by subtraction. The read-out is y = W_ho trace + b_o with trace' = trace_decay * trace + H(v' - 1): the spikes
    themselves, or where `trace_decay` is above 0, as in that paper, a leaky sum of them, whose memory then counts
    in measurements of the state. The neurons of that paper have neither biases nor connections to themselves.
    Derivatives, of the reset too, go through the surrogate of SuperSpike (see `spike`). At first tau, trainable in each
    neuron, comes from a gamma distribution of mean `mean_tau`, the more alike the larger `tau_shape` (heterogeneous as
    in Perez-Nieves et al., Nature Communications 2021, and Chakraborty et al., ICLR 2024, 2403.03409), everything else
    from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    The stored tau may fall below 1; `effective` has the decay that acts. The declared symmetry is permutation alone:
    thresholds that differ between neurons would add a rescaling of v, threshold and incoming weights together, which
    thresholds of 1 fix without loss. As spikes are all or none, outputs are discontinuous in params and inputs.
    """

    hidden_size: int
    mean_tau: float = 10.0
    tau_shape: int = 3
    trace_decay: float = 0.0
    surrogate_slope: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean_tau", "surrogate_slope"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be positive.")
        if not 0 <= self.trace_decay < 1:
            raise ValueError(f"`trace_decay` (={self.trace_decay}) must be at least 0 and below 1.")

    def declare(self) -> WeightSpec:
        tau = TensorSpec(axes=("hidden",), domain="at_least_1", row_roles=("timescale",), diagonal=True)
        return self._declare("tau", tau)

    @cached_property
    def effective_spec(self) -> WeightSpec:
        """The spec with `decay`, the diagonal weight of each potential, in place of tau."""
        decay = TensorSpec(axes=("hidden",), domain="positive", row_roles=("timescale",), diagonal=True)
        return self._declare("decay", decay)

    def _declare(self, name: str, timescale: TensorSpec) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="spike"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "weight_hh": TensorSpec(axes=("hidden", "hidden")),
            "bias": TensorSpec(axes=("hidden",)),
            name: timescale,
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        return WeightSpec(axes=axes, tensors=tensors, states={"v": "hidden", "trace": "hidden"})

    def init(self, generator: torch.Generator) -> Params:
        params = {}
        for name in self.spec.tensors:
            fan = self.input_size if name == "weight_ih" else self.hidden_size
            params[name] = uniform(self.spec.shape(name), fan, generator)
        params["tau"] = gamma(self.mean_tau, self.tau_shape, self.hidden_size, generator).clamp(min=1)
        return params

    def effective(self, params: Params) -> Params:
        used = {name: value for name, value in params.items() if name != "tau"}
        return {**used, "decay": torch.exp(-1 / params["tau"].clamp(min=1))}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        used, v = self.effective(params), state["v"]
        s = spike(v - THRESHOLD, self.surrogate_slope)
        drive = linear(x, used["weight_ih"], used["bias"]) + linear(s, used["weight_hh"])
        v = drive + (used["decay"] * v - THRESHOLD * s)
        return {"v": v, "trace": self.trace_decay * state["trace"] + spike(v - THRESHOLD, self.surrogate_slope)}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["trace"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=2, hidden_size=4, output_size=2, mean_tau=3.0, tau_shape=1, trace_decay=0.9),
        ]
