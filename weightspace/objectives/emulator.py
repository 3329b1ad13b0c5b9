"""The recurrent emulator of objectives that imitate behaviour: it reads inputs and is told the embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.objectives.base import Objective


class Emulator(Objective):
    """One GRU for all models: z_t = W_x x_t + P e at every step, its states g_t being what a subclass reads out.

    With `rank` r above 0 the embedding also changes the recurrent matrices, W_hh + u(e) v(e)^T with u (gate * width, r)
    and v (width, r) linear in e (as the hypernetworks of Vermani et al., Meta-dynamical state space models, ICLR 2025,
    arXiv 2410.05454, do); u starts at 0. Tasks with fewer inputs use the first columns of W_x.
    """

    def __init__(self, max_input_size: int, width: int, num_layers: int = 1, rank: int = 0) -> None:
        super().__init__()
        self.refuse_below(1, max_input_size=max_input_size, width=width, num_layers=num_layers)
        self.refuse_below(0, rank=rank)
        if rank and num_layers > 1:
            raise ValueError(f"`rank` (={rank}) needs an emulator of one layer, not `num_layers` (={num_layers}).")
        self.max_input_size, self.width, self.rank = max_input_size, width, rank
        self.read = nn.Linear(max_input_size, width)
        self.emulator = nn.GRU(width, width, num_layers)

    project: nn.Linear
    to_gates: nn.Linear
    from_state: nn.Linear

    def build(self, embedding_dim: int) -> None:
        """Make the projection P (embedding -> emulator), and u and v where `rank` asks for them."""
        self.project = nn.Linear(embedding_dim, self.width, bias=False)
        if self.rank:
            self.to_gates = nn.Linear(embedding_dim, 3 * self.width * self.rank, bias=False)
            self.from_state = nn.Linear(embedding_dim, self.width * self.rank)
            nn.init.zeros_(self.to_gates.weight)

    def refuse_longer(self, axis: str, size: int, limit: int) -> None:
        """Raise ValueError where an axis of the zoo is longer than the emulator was made for."""
        if size > limit:
            raise ValueError(
                f"Axis '{axis}' of the zoo has size {size}, but {type(self).__name__} was made for "
                f"`max_{axis}_size` (={limit}); train with `max_{axis}_size` {size} or more."
            )

    def choose(self, num_sequences: int, few: int, generator: torch.Generator) -> Tensor:
        """Sequences to imitate in this batch: a random few when training, the same first few when evaluating."""
        few = min(few, num_sequences)
        return torch.randperm(num_sequences, generator=generator)[:few] if self.training else torch.arange(few)

    def emulate(self, e: Tensor, x: Tensor) -> Tensor:
        """States (models, sequences, time, width) for embeddings (models, embedding) and inputs x (..., input)."""
        models, sequences, _, size = x.shape
        self.refuse_longer("input", size, self.max_input_size)
        read = F.linear(x, self.read.weight[:, :size], self.read.bias) + self.project(e)[:, None, None]
        read = read.flatten(0, 1).transpose(0, 1)
        h: Tensor = self._changed(e, read, sequences) if self.rank else self.emulator(read)[0]
        return h.transpose(0, 1).reshape(models, sequences, -1, self.width)

    def _changed(self, e: Tensor, read: Tensor, sequences: int) -> Tensor:
        """States (time, lane, width) of the GRU whose recurrent matrices the embeddings change; read like them."""
        gru = dict(self.emulator.named_parameters())
        u = self.to_gates(e).unflatten(1, (self.rank, 3 * self.width)) / self.rank**0.5
        v = self.from_state(e).unflatten(1, (self.width, self.rank)) / self.width**0.5
        h = read.new_zeros(read.shape[1:])
        states = []
        for driven in F.linear(read, gru["weight_ih_l0"], gru["bias_ih_l0"]).unbind(0):
            extra = (h.reshape(-1, sequences, self.width) @ v @ u).flatten(0, 1)
            of_h = F.linear(h, gru["weight_hh_l0"], gru["bias_hh_l0"]) + extra
            from_x, from_h = driven.chunk(3, 1), of_h.chunk(3, 1)
            reset, keep = (torch.sigmoid(a + b) for a, b in zip(from_x[:2], from_h[:2], strict=True))
            h = torch.lerp(torch.tanh(from_x[2] + reset * from_h[2]), h, keep)
            states.append(h)
        return torch.stack(states)
