"""The Elman network, the simplest recurrent network with a dense recurrent matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from weightspace.families.base import Noise, linear
from weightspace.families.layered import Layered
from weightspace.spec import Params, State


@dataclass(frozen=True, kw_only=True)
class Elman(Layered):
    """Stacked Elman layers with a linear read-out (Elman, Finding structure in time, Cognitive Science 1990).

    h_l' = f(W_ih_l x_l + W_hh_l h_l + b_l), x_0 the input and x_l = h_{l-1}' above; y = W_ho h_L + b_o; f tanh or relu.
    The two biases of torch.nn.RNN act only through their sum, `bias.l`. Without `bias` neither layers nor read-out
    have any: the origin is then a fixed point, at which the Jacobian of a tanh layer is W_hh.
    """

    nonlinearity: Literal["tanh", "relu"] = "tanh"
    bias: bool = True

    torch_class: ClassVar = nn.RNN
    torch_cell: ClassVar = nn.RNNCell

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"`nonlinearity` (={self.nonlinearity!r}) must be 'tanh' or 'relu'.")

    @property
    def unit(self) -> str:
        return self.nonlinearity

    @property
    def has_bias(self) -> bool:
        return self.bias

    @property
    def config(self) -> dict[str, Any]:
        """The fields; `bias` only where it is false, so that tables of networks with biases stay the same bytes."""
        return {name: value for name, value in super().config.items() if name != "bias" or not value}

    @property
    def gauge_kind(self) -> Literal["sign", "positive"]:
        return "sign" if self.nonlinearity == "tanh" else "positive"

    @classmethod
    def _options_from_torch(cls, module: nn.RNNBase | nn.RNNCellBase) -> dict[str, Any]:
        return {"nonlinearity": str(module.nonlinearity)}

    def _options_to_torch(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        new: State = {}
        for layer in range(self.num_layers):
            drive = linear(x, params[f"weight_ih.{layer}"], params.get(f"bias.{layer}"))
            drive = drive + linear(state[f"h.{layer}"], params[f"weight_hh.{layer}"])
            x = torch.tanh(drive) if self.nonlinearity == "tanh" else torch.relu(drive)
            new[f"h.{layer}"] = x
        return new

    @classmethod
    def examples(cls) -> list[Self]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=2, hidden_size=4, output_size=3, nonlinearity="relu"),
            cls(input_size=2, hidden_size=4, output_size=2, num_layers=2),
            cls(input_size=2, hidden_size=3, output_size=1, num_layers=2, nonlinearity="relu"),
            cls(input_size=1, hidden_size=4, output_size=4, num_layers=2, has_readout=False),
            cls(input_size=2, hidden_size=4, output_size=3, num_layers=2, bias=False),
        ]
