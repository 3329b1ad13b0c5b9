"""An encoder that asks the recurrent network itself: queries in, responses read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from weightspace.encoders.base import refuse_outside
from weightspace.encoders.interview import Interview, Interviewer
from weightspace.encoders.pooling import read_out
from weightspace.encoders.queries import Mode
from weightspace.store import Stack


class Querying(Interviewer):
    """Runs each model on learned input sequences and reads its responses: it reads the function, not the weights.

    The functionalist encoder of Herrmann et al. (Learning Useful Representations of Recurrent Neural Network Weight
    Matrices, ICML 2024, arXiv 2403.11998). `mode` says where queries come from: `static`, learned sequences;
    `deep_linear`, a linear generator that all queries share (ProbeGen, arXiv 2410.10811); `interactive`, an LSTM core
    that hears each answer before it asks on. Queries are of the task's declared kind and range. Beside the outputs, a
    reader sees numbers of the state that no declared symmetry changes: log norms, cosines with the step before and
    with other queries, how fast two rollouts that differ in one input meet again, the spectrum of the covariance. The
    last is an ingredient of `state_effective_rank`, the one before of memory. States that may be rescaled enter per
    unit alone. Declared noise is 0, and so is what a task gives the initial state, unless a family declares
    that it reads a start: fixed waves over its entries are one. Rollouts are in float64, and gradients reach the
    queries through them. Models with more than `max_inputs` or `max_outputs` are refused.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    symmetry: ClassVar[frozenset[str]] = frozenset({"permutation", "sign", "scale"})

    def __init__(
        self,
        embedding_dim: int = 64,
        mode: Mode = "deep_linear",
        num_queries: int = 8,
        num_steps: int = 24,
        width: int = 184,
        reader_dim: int = 48,
        max_inputs: int = 16,
        max_outputs: int = 16,
    ) -> None:
        super().__init__(embedding_dim)
        refuse_outside({"width": width})
        self.interview = Interview(mode, num_queries, num_steps, reader_dim, width, max_inputs, max_outputs)
        self.head = read_out(self.interview.width, width, embedding_dim)

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of stacks."""
        read, _ = self.interview(stacks)
        embedding: Tensor = self.head(read)
        return embedding
