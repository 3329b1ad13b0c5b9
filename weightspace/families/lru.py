"""The linear recurrent unit, a diagonal complex recurrence in real numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear
from weightspace.spec import Axis, Gauge, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class LRU(Family):
    """Linear recurrent unit with a real read-out (Orvieto et al., ICML 2023, arXiv 2303.06349).

    s' = lambda * s + exp(gamma) * (B x), y = Re(C s) + b_o, with lambda = exp(-exp(nu) + i exp(theta)), so that
    |lambda| < 1 whatever nu. s = h_re + i h_im; the rows of the axis `part` are real and imaginary parts of
    B (`weight_ih`) and C (`weight_ho`). At first lambda is uniform on the ring min_radius <= |lambda| <= max_radius
    with angles below max_angle, and exp(gamma) = sqrt(1 - |lambda|^2). `effective` has lambda itself, and exp(gamma)
    multiplied into B. The paper adds D x to y and a non-linear block behind it; a read-out here sees the state alone.
    """

    hidden_size: int
    min_radius: float = 0.0
    max_radius: float = 1.0
    max_angle: float = 2 * math.pi

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_radius < self.max_radius <= 1:
            raise ValueError(
                f"`min_radius` (={self.min_radius}) must be at least 0 and below `max_radius` (={self.max_radius}), "
                "which is at most 1."
            )
        if not self.max_angle > 0:
            raise ValueError(f"`max_angle` (={self.max_angle}) must be positive.")

    def declare(self) -> WeightSpec:
        return self._declare(
            {
                "nu": TensorSpec(axes=("hidden",), row_roles=("timescale",), diagonal=True),
                "theta": TensorSpec(axes=("hidden",), row_roles=("other",), diagonal=True),
                "gamma": TensorSpec(axes=("hidden",), row_roles=("gain",)),
            },
            {},
            {
                "gain": "(gamma + a, B exp(-a)) computes the same; it shifts gamma, and gauges multiply.",
                "angle": "Whole turns of exp(theta) change nothing; nor does -exp(theta) with conjugate B and C.",
            },
        )

    @cached_property
    def effective_spec(self) -> WeightSpec:
        """The spec of `effective`: lambda has neither gamma nor whole turns, and conjugation is a sign gauge."""
        eigenvalue = TensorSpec(axes=("part", "hidden"), row_roles=("timescale", "other"), diagonal=True)
        imaginary = (0, 1)
        charges = {"lambda": (0, imaginary), "weight_ih": (0, imaginary, 0), "weight_ho": (0, 0, imaginary)}
        conjugate = Gauge(axis="hidden", kind="sign", charges=charges, state_charges={"h_im": 1})
        return self._declare({"lambda": eigenvalue}, {"conjugate": conjugate}, {})

    def _declare(
        self, diagonals: dict[str, TensorSpec], gauges: dict[str, Gauge], unrepresented: dict[str, str]
    ) -> WeightSpec:
        parts = ("drive", "other")
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True),
            "output": Axis(size=self.output_size, kind="output"),
            "part": Axis(size=2, kind="channel", names=("re", "im")),
        }
        tensors = {
            **diagonals,
            "weight_ih": TensorSpec(axes=("part", "hidden", "input"), row_roles=parts),
            "weight_ho": TensorSpec(axes=("part", "output", "hidden"), row_roles=parts),
            "bias_o": TensorSpec(axes=("output",)),
        }
        scale = Gauge(
            axis="hidden",
            kind="nonzero",
            charges={"weight_ih": (0, 1, 0), "weight_ho": (0, 0, -1)},
            state_charges={"h_re": 1, "h_im": 1},
        )
        phase = (
            "(B exp(ia), C exp(-ia)) of a unit computes the same for every angle a, which mixes the rows of `part`; "
            "a = pi is in the declared gauge."
        )
        return WeightSpec(
            axes=axes,
            tensors=tensors,
            states={"h_re": "hidden", "h_im": "hidden"},
            gauges={"scale": scale, **gauges},
            recurrence="diagonal",
            unrepresented={"phase": phase, **unrepresented},
        )

    def init(self, generator: torch.Generator) -> Params:
        uniform = torch.rand(2, self.hidden_size, generator=generator).clamp(min=1e-6)
        square = self.min_radius**2 + uniform[0] * (self.max_radius**2 - self.min_radius**2)
        # nu of radius 1 would be -inf.
        square = square.clamp(max=1 - 1e-6)
        params = {
            "nu": torch.log(-0.5 * torch.log(square)),
            "theta": torch.log(self.max_angle * uniform[1]),
            "gamma": 0.5 * torch.log1p(-square),
        }
        deviation = {"weight_ih": (2 * self.input_size) ** -0.5, "weight_ho": self.hidden_size**-0.5}
        for name, scale in deviation.items():
            params[name] = scale * torch.randn(self.spec.shape(name), generator=generator)
        return {**params, "bias_o": torch.zeros(self.output_size)}

    def effective(self, params: Params) -> Params:
        radius, angle = torch.exp(-torch.exp(params["nu"])), torch.exp(params["theta"])
        used = {"lambda": torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)])}
        used["weight_ih"] = params["weight_ih"] * torch.exp(params["gamma"])[:, None]
        return used | {name: params[name] for name in ("weight_ho", "bias_o")}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        used, re, im = self.effective(params), state["h_re"], state["h_im"]
        turn_re, turn_im = used["lambda"].unbind(0)
        drive_re, drive_im = linear(x, used["weight_ih"]).chunk(2, dim=-1)
        return {"h_re": turn_re * re - turn_im * im + drive_re, "h_im": turn_re * im + turn_im * re + drive_im}

    def readout(self, params: Params, state: State) -> Tensor:
        real, imaginary = params["weight_ho"].unbind(0)
        # One sum of two products, as the sign is taken once for all steps.
        return linear(state["h_re"], real, params["bias_o"]) + linear(state["h_im"], -imaginary)

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=1, hidden_size=4, output_size=1, min_radius=0.5, max_radius=0.9, max_angle=0.5),
        ]
