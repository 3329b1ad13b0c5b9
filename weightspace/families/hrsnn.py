"""The heterogeneous recurrent spiking network: sparse, with a time constant of its own in every neuron."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from weightspace.families.base import Family, Least, Noise, gamma, linear, uniform
from weightspace.families.lif import THRESHOLD
from weightspace.families.spike import spike
from weightspace.spec import Axis, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class HRSNN(Family):
    """Leaky integrate-and-fire neurons in a sparse small world, each with its own time constant that is not trained.

    The networks that Chakraborty et al. prune (Sparse Spiking Neural Network, ICLR 2024, arXiv 2403.03409):
    v' = decay * v + (W_hh * M) s + W_ih x + b - s, decay = exp(-1 / max(tau, 1)). A neuron fires, s = 1, where v is
    above 1 + adaptation * a and it does not rest: a' = exp(-1 / adaptation_tau) * a + s raises its threshold after each
    spike (as in Bellec et al., Nature Communications 2020), and for `refractory` steps after a spike it stays silent.
    The read-out is y = W_ho trace + b_o with trace' = trace_decay * trace + s', s' the spikes of v'.

    tau comes from a gamma distribution of mean `mean_tau`, the more alike the larger `tau_shape`. Each neuron reads
    `degree` others, so M is a directed small world (see `small_world`). Initial weights are from
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)). tau is drawn last: networks that differ in `tau_shape` alone have the same
    weights. Derivatives of spikes are those of the surrogate (see `spike`), and the count of steps to rest has none.
    Without `adaptation` or `refractory` steps there is no state for them.

    Second-hand: the paper's text was not at hand, only its abstract and reviews. From there are the gamma distribution
    and the small world; sizes, the reset by subtraction and the forms of adaptation and rest are choices of this class.
    """

    hidden_size: int
    degree: int = 4
    """Neurons that each neuron reads; itself it does not read."""
    rewiring: float = 0.1
    """Probability with which a neighbour on the ring is exchanged for a neuron from elsewhere."""
    mean_tau: float = 10.0
    """Mean of the time constants, in steps."""
    tau_shape: int = field(default=2, metadata={"least": 0})
    """Shape of their gamma distribution; 0: they are all `mean_tau`."""
    adaptation: float = 0.0
    """Rise of the threshold with each spike."""
    adaptation_tau: float = 50.0
    """Steps over which that rise is forgotten."""
    refractory: int = field(default=0, metadata={"least": 0})
    """Steps of rest after a spike."""
    trace_decay: float = 0.9
    """Share of the trace of spikes, which the read-out reads, that stays after a step."""
    surrogate_slope: float = 10.0
    """Steepness of the surrogate derivative."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean_tau", "adaptation_tau", "surrogate_slope"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be positive and finite.")
        if not 0 <= self.adaptation < math.inf:
            raise ValueError(f"`adaptation` (={self.adaptation}) must be at least 0 and finite.")
        if not 0 <= self.rewiring <= 1:
            raise ValueError(f"`rewiring` (={self.rewiring}) must be from 0 to 1.")
        if not 0 <= self.trace_decay < 1:
            raise ValueError(f"`trace_decay` (={self.trace_decay}) must be at least 0 and below 1.")

    @classmethod
    def least(cls, config: Mapping[str, Any]) -> Mapping[str, Least]:
        return {"hidden_size": Least(config["degree"] + 1, "each neuron reads `degree` others")}

    def declare(self) -> WeightSpec:
        return self._declare("tau", "at_least_1")

    @cached_property
    def effective_spec(self) -> WeightSpec:
        """The spec with `decay`, the diagonal weight of each potential, in place of tau."""
        return self._declare("decay", "positive")

    def _declare(self, name: str, domain: Literal["positive", "at_least_1"]) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="spike"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        leak = TensorSpec(axes=("hidden",), role="fixed", domain=domain, row_roles=("timescale",), diagonal=True)
        tensors = {
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "weight_hh": TensorSpec(axes=("hidden", "hidden"), mask="mask_hh"),
            "mask_hh": TensorSpec(axes=("hidden", "hidden"), role="mask"),
            "bias": TensorSpec(axes=("hidden",)),
            name: leak,
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        counts = [*["adaptation"] * (self.adaptation > 0), *["rest"] * (self.refractory > 0)]
        return WeightSpec(axes=axes, tensors=tensors, states=dict.fromkeys(["v", *counts, "trace"], "hidden"))

    def init(self, generator: torch.Generator) -> Params:
        mask = small_world(self.hidden_size, self.degree, self.rewiring, generator)
        fans = {"weight_ih": self.input_size, "weight_hh": self.degree}
        params = {
            name: uniform(self.spec.shape(name), fans.get(name, self.hidden_size), generator)
            for name in self.spec.trained
        }
        params |= {"weight_hh": params["weight_hh"] * mask, "mask_hh": mask}
        tau = torch.full((self.hidden_size,), self.mean_tau)
        if self.tau_shape:
            tau = gamma(self.mean_tau, self.tau_shape, self.hidden_size, generator)
        return {**params, "tau": tau.clamp(min=1)}

    def effective(self, params: Params) -> Params:
        used = {name: value for name, value in params.items() if name != "tau"}
        used["weight_hh"] = params["weight_hh"] * params["mask_hh"]
        return {**used, "decay": torch.exp(-1 / params["tau"].clamp(min=1))}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        used, s = self.effective(params), self._spikes(state)
        drive = linear(x, used["weight_ih"], used["bias"]) + linear(s, used["weight_hh"])
        new = {"v": drive + (used["decay"] * state["v"] - THRESHOLD * s)}
        if "adaptation" in state:
            new["adaptation"] = math.exp(-1 / self.adaptation_tau) * state["adaptation"] + s
        if "rest" in state:
            new["rest"] = torch.relu(state["rest"].detach() - 1) + self.refractory * s.detach()
        return {**new, "trace": self.trace_decay * state["trace"] + self._spikes(new)}

    def _spikes(self, state: State) -> Tensor:
        """Spikes (batch, hidden) of a state: 1 where a neuron fires."""
        above = state["v"] - THRESHOLD
        if "adaptation" in state:
            above = above - self.adaptation * state["adaptation"]
        fires = spike(above, self.surrogate_slope)
        return fires * (1 - state["rest"].detach()).clamp(0, 1) if "rest" in state else fires

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["trace"], params["weight_ho"], params["bias_o"])

    @property
    def numbers_per_step(self) -> int:
        # Spikes are found before and after a potential changes, and every state has a sum of its own.
        return self.spec.numbers_per_step + self.spec.state_size

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=6, output_size=2, degree=3),
            cls(input_size=2, hidden_size=5, output_size=2, degree=2, adaptation=0.3, refractory=2, tau_shape=0),
        ]


def small_world(size: int, degree: int, rewiring: float, generator: torch.Generator) -> Tensor:
    """Synapses (to, from) of a directed small world (Watts and Strogatz, Nature 1998), 1 where there is one.

    Each neuron reads its `degree` nearest neighbours on a ring; each of these is exchanged, with probability
    `rewiring`, for a neuron drawn from those beyond, no two for the same one.
    """
    offsets = [(1 + number // 2) * (-1) ** number % size for number in range(degree)]
    beyond = torch.tensor([offset for offset in range(1, size) if offset not in offsets], dtype=torch.int64)
    exists = torch.zeros(size, size)
    for neuron in range(size):
        sources = torch.tensor(offsets)
        moved = (torch.rand(degree, generator=generator) < rewiring).nonzero().flatten()[: len(beyond)]
        sources[moved] = beyond[torch.randperm(len(beyond), generator=generator)[: len(moved)]]
        exists[neuron, (neuron + sources) % size] = 1
    return exists
