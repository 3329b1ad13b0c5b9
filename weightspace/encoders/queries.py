"""Queries to recurrent networks: learned input sequences, in the kind and range of inputs that a task declares."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from weightspace.store import Stack

Mode = Literal["static", "deep_linear", "interactive"]
SHARPNESS = 4.0
"""Factor of the log-odds of tokens: most untrained queries are then close to one token."""


class Queries(nn.Module):
    """Raw queries (time + 1, query, input), the same for every model; the last step is the second first input.

    `static`: every number is learned. `deep_linear`: a code per query goes through three linear maps that all queries
    share, without a nonlinearity (ProbeGen, Kahana et al., Deep Linear Probe Generators for Weight Space Learning,
    ICLR 2025, arXiv 2410.10811): gradients move queries together. Raw queries are standard normal at first.
    """

    def __init__(self, num_queries: int, num_steps: int, max_inputs: int, code_dim: int | None) -> None:
        super().__init__()
        self.shape = (num_queries, num_steps + 1, max_inputs)
        numbers = (num_steps + 1) * max_inputs
        self.codes = nn.Parameter(torch.randn(num_queries, numbers if code_dim is None else code_dim))
        sizes = [] if code_dim is None else [code_dim, code_dim, code_dim, numbers]
        maps = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
        for layer in maps:
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.generator = nn.Sequential(*maps)

    def forward(self) -> Tensor:
        """Raw queries (time + 1, query, input)."""
        raw: Tensor = self.generator(self.codes).unflatten(1, self.shape[1:]).transpose(0, 1)
        return raw


class Core(nn.Module):
    """The interactive part: two residual LSTM layers that hear a model's last answers and shift its next query.

    h_0 = sigmoid(W y(t-1) + b) + c, with c of the query; h_l = h_(l-1) + LSTM_l(h_(l-1)); the raw query at t is that of
    `Queries` plus MLP(h_2): so queries start from learned sequences, and the answers lead on from there (the
    interactive encoder of Herrmann et al., ICML 2024, arXiv 2403.11998, whose queries come from the core alone).

    Shapes: answers (models, query, output) -> shifts (models, query, input).
    """

    def __init__(self, width: int, num_queries: int, max_inputs: int, max_outputs: int) -> None:
        super().__init__()
        self.width = width
        self.hear = nn.Linear(max_outputs, width)
        self.query = nn.Parameter(torch.randn(num_queries, width))
        self.cells = nn.ModuleList(nn.LSTMCell(width, width) for _ in range(2))
        self.ask = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, max_inputs))

    def begin(self, models: int) -> list[tuple[Tensor, Tensor]]:
        """States of both layers before the first answer."""
        zeros = self.query.new_zeros(models * len(self.query), self.width)
        return [(zeros, zeros) for _ in self.cells]

    def forward(
        self, answers: Tensor, memory: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Shifts, what the core thinks (models, query, width), and its next states."""
        h = (torch.sigmoid(self.hear(answers.to(self.query.dtype))) + self.query).flatten(0, 1)
        states = []
        for cell, state in zip(self.cells, memory, strict=True):
            states.append(cell(h, state))
            h = h + states[-1][0]
        h = h.unflatten(0, answers.shape[:2])
        return self.ask(h), h, states


def refuse_unknown_mode(mode: str) -> None:
    """Raise ValueError unless there are queries of this mode."""
    if mode not in get_args(Mode):
        raise ValueError(f"`mode` (={mode!r}) must be one of {', '.join(get_args(Mode))}.")


def as_inputs(raw: Tensor, stack: Stack) -> Tensor:
    """Inputs (..., input), float64, of raw queries (..., at least input), of the kind and range that a stack declares.

    One-hot inputs become probabilities of tokens, values lie between both ends of their range; -1 to 1 where the
    inputs are not known.
    """
    raw = raw[..., : stack.family.input_size].double()
    if stack.io is not None and stack.io.input_kind == "one_hot":
        return torch.softmax(SHARPNESS * raw, dim=-1)
    low, high = (-1.0, 1.0) if stack.io is None else stack.io.input_range
    return low + (high - low) * torch.sigmoid(raw)
