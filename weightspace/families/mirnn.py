"""The network with multiplicative integration, whose drives from units and from inputs are multiplied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from weightspace.families.base import Family, linear
from weightspace.families.multiplicative import Multiplicative, Terms
from weightspace.spec import Gauge, Params, TensorSpec


@dataclass(frozen=True, kw_only=True)
class MIRNN(Multiplicative):
    """Network with multiplicative integration (Wu et al., NeurIPS 2016, arXiv 1606.06630).

    h' = tanh(alpha * u * v + beta_hh * u + beta_ih * v + b) with u = W_hh h and v = W_ih x, y = W_ho h + b_o. Its
    products are those of a CPRNN of rank hidden with A = W_hh, B = W_ih and C = diag(alpha). Without `first_order`
    beta_hh and beta_ih are left out. Scaling a unit's row of W_hh by e and of W_ih by f changes nothing where alpha is
    divided by e f, beta_hh by e and beta_ih by f. Every tensor starts from U(-1/sqrt(hidden), 1/sqrt(hidden)), as in
    Lizaire et al. (ICML 2024, arXiv 2406.05045).
    """

    def _of_products(self) -> Terms:
        tensors = {
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "weight_hh": TensorSpec(axes=("hidden", "hidden")),
            "alpha": TensorSpec(axes=("hidden",), row_roles=("gate",)),
        }
        return Terms(tensors, {"weight_ih": (1, 0), "weight_hh": (1, 1), "alpha": (1,)})

    def _of_sums(self) -> Terms:
        return Terms({f"beta_{end}": TensorSpec(axes=("hidden",), row_roles=("gain",)) for end in ("hh", "ih")}, {})

    def _scalings(self) -> Mapping[str, Gauge]:
        gauges = {}
        for end in ("hh", "ih"):
            charges = {f"weight_{end}": (1, 0), "alpha": (-1,), **({f"beta_{end}": (-1,)} if self.first_order else {})}
            gauges[f"scale_{end}"] = Gauge(axis="hidden", kind="nonzero", charges=charges)
        return gauges

    @property
    def numbers_per_step(self) -> int:
        """Those of the spec, and both factors of the products."""
        return 2 * self.hidden_size + self.spec.numbers_per_step

    def products(self, params: Params, h: Tensor, x: Tensor) -> Tensor:
        return linear(h, params["weight_hh"]) * linear(x, params["weight_ih"]) * params["alpha"]

    def sums(self, params: Params, h: Tensor, x: Tensor) -> Tensor:
        from_units, from_inputs = linear(h, params["weight_hh"]), linear(x, params["weight_ih"])
        return from_units * params["beta_hh"] + from_inputs * params["beta_ih"]

    def product_tensor(self, params: Params) -> Tensor:
        scaled = params["weight_hh"] * params["alpha"][:, None]
        return scaled[:, :, None] * params["weight_ih"][:, None]

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=2, hidden_size=4, output_size=1, first_order=False),
        ]
