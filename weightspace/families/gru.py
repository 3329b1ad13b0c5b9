"""The gated recurrent unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from weightspace.families.base import Noise, linear
from weightspace.families.layered import Layered
from weightspace.spec import Gauge, Params, State, TensorSpec


@dataclass(frozen=True, kw_only=True)
class GRU(Layered):
    """Stacked gated recurrent units with a linear read-out (Cho et al., EMNLP 2014; the reset of torch.nn.GRU).

    r = sigmoid(W_ir x + W_hr h + b_r), z = sigmoid(W_iz x + W_hz h + b_z),
    n = tanh(W_in x + b_n + r * (W_hn h + b_hn)), h' = (1 - z) * n + z * h; y = W_ho h + b_o.
    Gate rows are r, z, n. Of the biases only b_n and b_hn act apart; the others are stored as sums.
    """

    torch_class: ClassVar = nn.GRU
    torch_cell: ClassVar = nn.GRUCell
    gates: ClassVar = ("r", "z", "n")
    roles: ClassVar = ("gate", "timescale", "drive")
    target_charge: ClassVar = (0, 0, 1)

    def _layer_tensors(self, layer: int) -> dict[str, TensorSpec]:
        bias_hn = TensorSpec(axes=(f"hidden.{layer}",), row_roles=("other",))
        return super()._layer_tensors(layer) | {f"bias_hn.{layer}": bias_hn}

    def _gauge(self, layer: int) -> Gauge:
        gauge = super()._gauge(layer)
        return replace(gauge, charges={**gauge.charges, f"bias_hn.{layer}": (1,)})

    def _biases_from_torch(self, layer: int, input_bias: Tensor, recurrent_bias: Tensor) -> Params:
        summed = torch.cat([input_bias[:2] + recurrent_bias[:2], input_bias[2:]])
        return {f"bias.{layer}": summed, f"bias_hn.{layer}": recurrent_bias[2].clone()}

    def _recurrent_bias(self, params: Mapping[str, Tensor], layer: int) -> Tensor:
        zero = torch.zeros_like(params[f"bias_hn.{layer}"])
        return torch.stack([zero, zero, params[f"bias_hn.{layer}"]])

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        new: State = {}
        for layer in range(self.num_layers):
            h = state[f"h.{layer}"]
            from_input = linear(x, params[f"weight_ih.{layer}"], params[f"bias.{layer}"])
            r_x, z_x, n_x = from_input.chunk(3, dim=-1)
            r_h, z_h, n_h = linear(h, params[f"weight_hh.{layer}"]).chunk(3, dim=-1)
            z = torch.sigmoid(z_x + z_h)
            n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * (n_h + params[f"bias_hn.{layer}"]))
            x = n + z * (h - n)
            new[f"h.{layer}"] = x
        return new

    @classmethod
    def examples(cls) -> list[Self]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=2, hidden_size=4, output_size=2, num_layers=2),
            cls(input_size=1, hidden_size=3, output_size=3, num_layers=2, has_readout=False),
        ]
