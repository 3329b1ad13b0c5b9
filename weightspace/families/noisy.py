"""Continuous-time networks with noise in their units and a start that the task's code sets."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from weightspace.families.base import Family, linear, uniform
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class Noisy(Family):
    """Continuous-time units in steps of dt, with Gaussian noise, without biases; y = D r.

    Before the first input r = E s, with s the start that the task gives, and r = 0 without one. `alpha` is dt / tau,
    `noise` the standard deviation sigma sqrt(dt) of what is added to each unit at each step. `weight_sh` is E,
    `weight_ho` D. All start from U(-1/sqrt(from), 1/sqrt(from)).
    """

    hidden_size: int
    alpha: float = 0.5
    noise: float = 0.1
    start_size: int = field(default=0, metadata={"least": 0})

    gates: ClassVar[tuple[str, ...]] = ()
    """Names of the gate rows; none where a layer has a single matrix."""
    roles: ClassVar[tuple[str, ...]] = ("drive",)
    unit: ClassVar[str]
    gauge_kind: ClassVar[Literal["sign", "positive"]]
    target_charge: ClassVar[Charge] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ValueError(f"`alpha` (={self.alpha}) must be above 0 and at most 1: a step is at most tau.")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"`noise` (={self.noise}) must be 0 or above, and finite.")

    @property
    def reads_start(self) -> int:
        return self.start_size

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity=self.unit),
            "output": Axis(size=self.output_size, kind="output"),
        }
        lead, zero = (("gate",), (0,)) if self.gates else ((), ())
        if self.gates:
            axes["gate"] = Axis(size=len(self.gates), kind="channel", names=self.gates)
        tensors = {
            "weight_ih": TensorSpec(axes=(*lead, "hidden", "input"), row_roles=self.roles),
            "weight_hh": TensorSpec(axes=(*lead, "hidden", "hidden"), row_roles=self.roles),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
        }
        charges: dict[str, tuple[Charge, ...]] = {
            "weight_ih": (*zero, self.target_charge, 0),
            "weight_hh": (*zero, self.target_charge, -1),
            "weight_ho": (0, -1),
        }
        if self.start_size:
            axes["start"] = Axis(size=self.start_size, kind="factor")
            tensors["weight_sh"] = TensorSpec(axes=("hidden", "start"))
            charges["weight_sh"] = (1, 0)
        gauge = Gauge(axis="hidden", kind=self.gauge_kind, charges=charges, state_charges={"r": 1, "eta": 1})
        # Signs leave the distribution of the noise as it is, sizes do not.
        is_free = self.gauge_kind == "sign" or self.noise == 0
        return WeightSpec(
            axes=axes,
            tensors=tensors,
            states={"r": "hidden"},
            gauges={"sign" if self.gauge_kind == "sign" else "scale": gauge} if is_free else {},
            noise={"eta": "hidden"} if self.noise else {},
            unrepresented={} if is_free else {"scale": "Noise has the same size in all units, whatever their scale."},
        )

    def init(self, generator: torch.Generator) -> Params:
        shapes = {name: self.spec.shape(name) for name in self.spec.tensors}
        return {name: uniform(shape, shape[-1], generator) for name, shape in shapes.items()}

    def initial_state(self, params: Params, start: Tensor) -> State:
        if self.start_size == 0 or start.shape[-1] == 0:
            return super().initial_state(params, start)
        return {"r": linear(start, params["weight_sh"])}

    def noised(self, r: Tensor, noise: Tensor | None) -> Tensor:
        """Rates (batch, hidden) with a step's noise (batch, hidden) added."""
        return r if noise is None else r + self.noise * noise

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["r"], params["weight_ho"])

    @classmethod
    @abstractmethod
    def examples(cls) -> list[Self]:
        """Small instances that every contract test runs on."""
