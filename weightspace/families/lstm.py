"""The long short-term memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from weightspace.families.base import Noise, linear
from weightspace.families.layered import Layered
from weightspace.spec import Params, State


@dataclass(frozen=True, kw_only=True)
class LSTM(Layered):
    """Stacked LSTM layers with a linear read-out (Hochreiter and Schmidhuber, Neural Computation 1997).

    i, f, o = sigmoid(W_i* x + W_h* h + b_*), g = tanh(W_ig x + W_hg h + b_g), c' = f * c + i * g, h' = o * tanh(c');
    y = W_ho h + b_o. The forget gate f is that of Gers et al. (Neural Computation 2000). Gate rows are i, f, g, o as
    in torch.nn.LSTM, whose two biases act only through their sum. Flipping the sign of a unit's c and h flips the row
    of its g gate, and the columns of all four gates that read it.
    """

    torch_class: ClassVar = nn.LSTM
    torch_cell: ClassVar = nn.LSTMCell
    gates: ClassVar = ("i", "f", "g", "o")
    roles: ClassVar = ("gate", "timescale", "drive", "gain")
    target_charge: ClassVar = (0, 0, 1, 0)
    state_names: ClassVar = ("h", "c")

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        new: State = {}
        for layer in range(self.num_layers):
            drive = linear(x, params[f"weight_ih.{layer}"], params[f"bias.{layer}"])
            drive = drive + linear(state[f"h.{layer}"], params[f"weight_hh.{layer}"])
            i, f, g, o = drive.chunk(4, dim=-1)
            c = torch.sigmoid(f) * state[f"c.{layer}"] + torch.sigmoid(i) * torch.tanh(g)
            x = torch.sigmoid(o) * torch.tanh(c)
            new |= {f"h.{layer}": x, f"c.{layer}": c}
        return new

    @classmethod
    def examples(cls) -> list[Self]:
        return [
            cls(input_size=3, hidden_size=5, output_size=2),
            cls(input_size=2, hidden_size=4, output_size=2, num_layers=2),
            cls(input_size=2, hidden_size=4, output_size=4, num_layers=2, has_readout=False),
        ]
