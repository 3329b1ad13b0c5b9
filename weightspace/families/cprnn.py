"""The second-order recurrent network whose weight tensor is a CP decomposition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace.families.base import Family, linear
from weightspace.families.multiplicative import Multiplicative, Terms
from weightspace.spec import Axis, Gauge, Params, TensorSpec


@dataclass(frozen=True, kw_only=True)
class CPRNN(Multiplicative):
    """Second-order network in CP form with a linear read-out (Lizaire et al., ICML 2024, arXiv 2406.05045).

    h' = tanh(C ((A h) * (B x)) + W_hh h + W_ih x + b), y = W_ho h + b_o, with A (rank, hidden), B (rank, input) and
    C (hidden, rank): the full second-order tensor is sum_r C[:, r] A[r, :] B[r, :], and rank 0 leaves it
    out. Without `first_order` W_hh and W_ih are left out, the paper's CPBIRNN. Every tensor starts from
    U(-1/sqrt(hidden), 1/sqrt(hidden)), as in the paper.
    """

    rank: int = field(metadata={"least": 0})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.rank or self.first_order):
            raise ValueError(
                "`rank` (=0) of CPRNN leaves no products and `first_order` (=False) no sums: `rank` must be at least 1 "
                "or `first_order` true."
            )

    def _of_products(self) -> Terms:
        if self.rank == 0:
            return Terms({}, {})
        tensors = {
            "factor_a": TensorSpec(axes=("rank", "hidden")),
            "factor_b": TensorSpec(axes=("rank", "input")),
            "factor_c": TensorSpec(axes=("hidden", "rank")),
        }
        return Terms(tensors, {"factor_a": (0, 1), "factor_c": (1, 0)})

    def _factor_axes(self) -> Mapping[str, Axis]:
        axis = Axis(size=self.rank, kind="factor", permutable=True, nonlinearity="product")
        return {"rank": axis} if self.rank else {}

    def _scalings(self) -> Mapping[str, Gauge]:
        if self.rank == 0:
            return {}
        scale_b = Gauge(axis="rank", kind="nonzero", charges={"factor_a": (-1, 0), "factor_b": (1, 0)})
        scale_c = Gauge(axis="rank", kind="nonzero", charges={"factor_a": (-1, 0), "factor_c": (0, 1)})
        return {"scale_b": scale_b, "scale_c": scale_c}

    def products(self, params: Params, h: Tensor, x: Tensor) -> Tensor:
        if self.rank == 0:
            return torch.zeros_like(h)
        return linear(linear(h, params["factor_a"]) * linear(x, params["factor_b"]), params["factor_c"])

    def drive(self, params: Params, h: Tensor, x: Tensor) -> Tensor:
        # No zeros are added, for which the engine has no operation.
        return super().drive(params, h, x) if self.rank else self.sums(params, h, x)

    def product_tensor(self, params: Params) -> Tensor:
        if self.rank == 0:
            return params["bias"].new_zeros(self.hidden_size, self.hidden_size, self.input_size)
        scaled = params["factor_a"][:, :, None] * params["factor_b"][:, None]
        return torch.einsum("kr,rji->kji", params["factor_c"], scaled)

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2, rank=4),
            cls(input_size=1, hidden_size=4, output_size=1, rank=6),
            cls(input_size=2, hidden_size=3, output_size=1, rank=0),
            cls(input_size=2, hidden_size=3, output_size=2, rank=2, first_order=False),
        ]
