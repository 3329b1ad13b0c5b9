"""The echo-state network: a random reservoir that stays as drawn, with a trained read-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Gauge, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class EchoState(Family):
    """Leaky echo-state network (Jaeger, GMD Report 148, 2001; leak as in Jaeger et al., Neural Networks 2007).

    h' = (1 - leak) * h + leak * tanh(W_hh h + W_ih x + b), y = W_ho h + b_o. W_hh, W_ih and b are drawn once and have
    the role `fixed`: W_hh Gaussian, scaled to `spectral_radius`; W_ih and b from U(-input_scale, input_scale). Only
    W_ho and b_o are trained.
    """

    hidden_size: int
    spectral_radius: float = 0.9
    input_scale: float = 1.0
    leak: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("spectral_radius", "input_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be positive.")
        if not 0 < self.leak <= 1:
            raise ValueError(f"`leak` (={self.leak}) must be above 0 and at most 1.")

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="tanh"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=("hidden", "input"), role="fixed"),
            "weight_hh": TensorSpec(axes=("hidden", "hidden"), role="fixed"),
            "bias": TensorSpec(axes=("hidden",), role="fixed"),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        sign = Gauge(
            axis="hidden",
            kind="sign",
            charges={"weight_ih": (1, 0), "weight_hh": (1, 1), "bias": (1,), "weight_ho": (0, 1)},
            state_charges={"h": 1},
        )
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"}, gauges={"sign": sign})

    def init(self, generator: torch.Generator) -> Params:
        size = self.hidden_size
        matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
        matrix = matrix * (self.spectral_radius / torch.linalg.eigvals(matrix).abs().max())
        return {
            "weight_ih": self.input_scale * uniform((size, self.input_size), 1, generator),
            "weight_hh": matrix.float(),
            "bias": self.input_scale * uniform((size,), 1, generator),
            "weight_ho": uniform((self.output_size, size), size, generator),
            "bias_o": uniform((self.output_size,), size, generator),
        }

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        h = state["h"]
        drive = linear(x, params["weight_ih"], params["bias"]) + linear(h, params["weight_hh"])
        return {"h": h + self.leak * (torch.tanh(drive) - h)}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=1, hidden_size=6, output_size=1, spectral_radius=1.2, input_scale=0.3, leak=0.4),
        ]
