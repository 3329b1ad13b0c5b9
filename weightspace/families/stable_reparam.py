"""The continuous-time network whose rates are functions that keep them positive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec

PARAMETERISATIONS = ("direct", "exp", "softplus", "inverse")
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "hardtanh": partial(torch.clamp, min=-1.0, max=1.0),
    "identity": lambda drive: drive,
}
OFFSET = 0.1
"""Of the parameterisation "inverse", whose rates stay below 1 / OFFSET."""
FASTEST_START = 2.0
"""Bound on initial rates."""
LARGEST_STEP = 1 / FASTEST_START
"""Time step beyond which Euler's method would overshoot at the fastest initial rate."""


@dataclass(frozen=True, kw_only=True)
class StableReparam(Family):
    """Continuous-time network by Euler's method (Wang, Li and Li, ICLR 2024, arXiv 2305.19190; rates as in 2311.14495).

    h' = h + dt * s(W_ih x + b - R h), y = W_ho h + b_o, with s tanh, hardtanh(u) = min(max(u, -1), 1) or the identity,
    dt = `time_step` and rates r = g(w): "direct" g(w) = w, which nothing keeps positive; "exp" exp(w); "softplus" log(1
    + exp(w)); "inverse" 1 / (w^2 + 0.1). R = diag(r), or with `mixed` P^T diag(r) P, P trained freely from an
    orthogonal start, as in the authors' code (read, no licence: nothing is copied). Rates other than direct act as at
    most 1 / dt, so that Euler's method neither grows nor overshoots for diag(r), nor grows for P^T diag(r) P while the
    norm of P is below sqrt(2). `effective` has the rates, or -R as `weight_hh`. All parameterisations start from the
    same rates, softplus of standard normal numbers and at most 2: the authors draw w itself from the normal
    distribution, where direct rates would start below 0. The rest starts as in torch.nn.Linear.
    """

    hidden_size: int
    parameterisation: Literal["direct", "exp", "softplus", "inverse"] = "softplus"
    nonlinearity: Literal["tanh", "hardtanh", "identity"] = "tanh"
    mixed: bool = False
    time_step: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("parameterisation", PARAMETERISATIONS), ("nonlinearity", tuple(FUNCTIONS))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` (={getattr(self, name)!r}) of StableReparam must be one of {known}.")
        if not 0 < self.time_step <= LARGEST_STEP:
            raise ValueError(
                f"`time_step` (={self.time_step}) of StableReparam must be above 0 and at most {LARGEST_STEP}: rates "
                f"start at up to {FASTEST_START:g}, and Euler's method is not stable where time_step * rate is above 2."
            )

    def declare(self) -> WeightSpec:
        rate = {"w": self._rate("even" if self.parameterisation == "inverse" else "real")}
        if not self.mixed:
            return self._declare(rate, self._gauges({}))
        gauges = self._gauges({"basis": (0, 1)})
        if self.parameterisation == "direct":
            gauges["scale_mode"] = Gauge(axis="mode", kind="nonzero", charges={"w": (-2,), "basis": (1, 0)})
        return self._declare({**rate, "basis": TensorSpec(axes=("mode", "hidden"))}, gauges)

    @cached_property
    def effective_spec(self) -> WeightSpec:
        """The spec of `effective`: rates, or with `mixed` the recurrent matrix, in the place of w and P."""
        if self.mixed:
            matrix = {"weight_hh": TensorSpec(axes=("hidden", "hidden"))}
            return self._declare(matrix, self._gauges({"weight_hh": (1, 1)}))
        rate = self._rate("real" if self.parameterisation == "direct" else "positive")
        return self._declare({"rate": rate}, self._gauges({}))

    def _rate(self, domain: Literal["real", "positive", "even"]) -> TensorSpec:
        axis = "mode" if self.mixed else "hidden"
        return TensorSpec(axes=(axis,), domain=domain, row_roles=("timescale",), diagonal=not self.mixed)

    def _gauges(self, recurrent: dict[str, tuple[Charge, ...]]) -> dict[str, Gauge]:
        """Rescalings of units: by any number where units are linear and independent, else by signs."""
        scaled = self.nonlinearity == "identity" and not self.mixed
        charges: dict[str, tuple[Charge, ...]] = {"weight_ih": (1, 0), "bias": (1,), "weight_ho": (0, -1), **recurrent}
        kind: Literal["nonzero", "sign"] = "nonzero" if scaled else "sign"
        gauge = Gauge(axis="hidden", kind=kind, charges=charges, state_charges={"h": 1})
        return {"scale" if scaled else "sign": gauge}

    def _declare(self, recurrent: dict[str, TensorSpec], gauges: dict[str, Gauge]) -> WeightSpec:
        axes = {"input": Axis(size=self.input_size, kind="input")}
        # Both saturating functions are odd: one word of the declaration does for them.
        unit = "identity" if self.nonlinearity == "identity" else "tanh"
        axes["hidden"] = Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity=unit)
        if "basis" in recurrent:
            axes["mode"] = Axis(size=self.hidden_size, kind="factor", permutable=True)
        axes["output"] = Axis(size=self.output_size, kind="output")
        tensors = {
            **recurrent,
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "bias": TensorSpec(axes=("hidden",)),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        unrepresented = {}
        if self.mixed and self.nonlinearity == "identity":
            unrepresented["rotation"] = "Linear units may be rotated by any orthogonal matrix, with P and both maps."
        if self.mixed and self.parameterisation != "direct":
            unrepresented["scale_mode"] = "A row of P may be scaled, its rate divided by the square: no power of w."
        return WeightSpec(
            axes=axes,
            tensors=tensors,
            states={"h": "hidden"},
            gauges=gauges,
            recurrence="dense" if self.mixed else "diagonal",
            unrepresented=unrepresented,
        )

    def init(self, generator: torch.Generator) -> Params:
        size = self.hidden_size
        rate = F.softplus(torch.randn(size, generator=generator)).clamp(max=FASTEST_START)
        params = {"w": parameter_of(self.parameterisation, rate)}
        if self.mixed:
            turned, triangle = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
            params["basis"] = (turned * triangle.diagonal().sign()).float()
        for name in ("weight_ih", "bias", "weight_ho", "bias_o"):
            fan = size if name in ("weight_ho", "bias_o") else self.input_size
            params[name] = uniform(self.spec.shape(name), fan, generator)
        return params

    def _rates(self, params: Params) -> Tensor:
        rate = rate_of(self.parameterisation, params["w"])
        return rate if self.parameterisation == "direct" else rate.clamp(max=1 / self.time_step)

    def effective(self, params: Params) -> Params:
        used = {name: params[name] for name in ("weight_ih", "bias", "weight_ho", "bias_o")}
        if self.mixed:
            basis = params["basis"]
            return {"weight_hh": -(basis.T @ (self._rates(params)[:, None] * basis)), **used}
        return {"rate": self._rates(params), **used}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        used, h = self.effective(params), state["h"]
        drive = linear(x, used["weight_ih"], used["bias"])
        drive = drive + linear(h, used["weight_hh"]) if self.mixed else drive - used["rate"] * h
        return {"h": h + self.time_step * FUNCTIONS[self.nonlinearity](drive)}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=2, hidden_size=5, output_size=2),
            cls(input_size=1, hidden_size=4, output_size=1, parameterisation="exp", nonlinearity="identity"),
            cls(input_size=2, hidden_size=4, output_size=1, parameterisation="inverse", mixed=True, time_step=0.1),
            cls(input_size=1, hidden_size=3, output_size=2, parameterisation="direct", mixed=True),
            cls(input_size=2, hidden_size=4, output_size=2, parameterisation="direct"),
            cls(input_size=2, hidden_size=4, output_size=1, nonlinearity="hardtanh"),
        ]


def rate_of(parameterisation: str, w: Tensor) -> Tensor:
    """Rates r = g(w) of parameters w of any shape."""
    if parameterisation == "direct":
        return w
    if parameterisation == "exp":
        return torch.exp(w)
    return F.softplus(w) if parameterisation == "softplus" else 1 / (w * w + OFFSET)


def parameter_of(parameterisation: str, rate: Tensor) -> Tensor:
    """Parameters w with g(w) = r for rates r above 0, of "inverse" those below 1 / OFFSET."""
    if parameterisation == "direct":
        return rate
    if parameterisation == "exp":
        return rate.log()
    if parameterisation == "softplus":
        return rate + torch.log(-torch.expm1(-rate))
    return (1 / rate - OFFSET).sqrt()
