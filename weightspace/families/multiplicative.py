"""Networks of tanh units whose drive has products of a unit and an input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec


class Terms(NamedTuple):
    """Tensors of some terms of the drive, in the order in which they are stored."""

    tensors: dict[str, TensorSpec]
    charges: dict[str, tuple[Charge, ...]]
    """Powers of the sign of a unit, of the tensors on which it acts."""


@dataclass(frozen=True, kw_only=True)
class Multiplicative(Family):
    """h' = tanh(p + q + b), y = W_ho h + b_o, with products p_k = sum_ji T_kji h_j x_i and sums q of single numbers.

    Subclasses say how T (hidden, hidden, input) is made of their tensors; q = W_hh h + W_ih x, unless they say
    otherwise, and is left out without `first_order`. Every tensor starts from U(-1/sqrt(hidden), 1/sqrt(hidden)), as
    in Lizaire et al. (ICML 2024, arXiv 2406.05045).
    """

    hidden_size: int
    first_order: bool = True

    @abstractmethod
    def products(self, params: Params, h: Tensor, x: Tensor) -> Tensor:
        """The products p (batch, hidden) of units h (batch, hidden) and inputs x (batch, input)."""

    @abstractmethod
    def product_tensor(self, params: Params) -> Tensor:
        """The tensor T (hidden, hidden, input): to, from and input."""

    @abstractmethod
    def _of_products(self) -> Terms:
        """Tensors of the products, and their charges."""

    def _of_sums(self) -> Terms:
        """Tensors of the sums, and their charges."""
        tensors = {
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "weight_hh": TensorSpec(axes=("hidden", "hidden")),
        }
        return Terms(tensors, {"weight_ih": (1, 0), "weight_hh": (1, 1)})

    def _factor_axes(self) -> Mapping[str, Axis]:
        return {}

    def _scalings(self) -> Mapping[str, Gauge]:
        return {}

    def sums(self, params: Params, h: Tensor, x: Tensor) -> Tensor:
        """The sums q (batch, hidden) of units h (batch, hidden) and inputs x (batch, input)."""
        return linear(h, params["weight_hh"]) + linear(x, params["weight_ih"])

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="tanh"),
            **self._factor_axes(),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors, charges = self._of_products()
        if self.first_order:
            sums = self._of_sums()
            tensors, charges = tensors | sums.tensors, charges | sums.charges
        tensors = {
            **tensors,
            "bias": TensorSpec(axes=("hidden",)),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        charges = {**charges, "bias": (1,), "weight_ho": (0, 1)}
        sign = Gauge(axis="hidden", kind="sign", charges=charges, state_charges={"h": 1})
        gauges = {"sign": sign, **self._scalings()}
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"}, gauges=gauges)

    def init(self, generator: torch.Generator) -> Params:
        return {name: uniform(self.spec.shape(name), self.hidden_size, generator) for name in self.spec.tensors}

    def drive(self, params: Params, h: Tensor, x: Tensor) -> Tensor:
        """The drive p + q (batch, hidden) without the bias."""
        products = self.products(params, h, x)
        return products + self.sums(params, h, x) if self.first_order else products

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        return {"h": torch.tanh(self.drive(params, state["h"], x) + params["bias"])}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"], params["bias_o"])
