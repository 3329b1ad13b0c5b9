"""The second-order recurrent network with its full weight tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from weightspace.families.base import Family, linear
from weightspace.families.multiplicative import Multiplicative, Terms
from weightspace.families.pairs import paired, skewed, summed
from weightspace.spec import Params, TensorSpec


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Multiplicative):
    """Second-order network with a full weight tensor (Giles et al., Neural Computation 1992).

    h'_k = tanh(sum_ji T_kji h_j x_i + (W_hh h + W_ih x)_k + b_k), y = W_ho h + b_o, T (hidden, hidden, input) stored as
    `weight_hhi`. Without `first_order` W_hh and W_ih are left out: the bilinear network of Lizaire et al. (ICML 2024,
    arXiv 2406.05045), from which the initialisation U(-1/sqrt(hidden), 1/sqrt(hidden)) is, too.
    """

    def _of_products(self) -> Terms:
        return Terms({"weight_hhi": TensorSpec(axes=("hidden", "hidden", "input"))}, {"weight_hhi": (1, 1, 0)})

    def products(self, params: Params, h: Tensor, x: Tensor) -> Tensor:
        # A map of h for every input, weighed by the inputs: the engine has no products of three axes.
        maps = skewed(self.product_tensor(params).transpose(1, 2))
        return summed(linear(h, maps) * paired(x, self.hidden_size), self.hidden_size)

    def product_tensor(self, params: Params) -> Tensor:
        return params["weight_hhi"]

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=3, hidden_size=5, output_size=2, first_order=False),
        ]
