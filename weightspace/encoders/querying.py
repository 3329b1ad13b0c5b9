"""An encoder that asks the recurrent network itself: queries in, responses read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from weightspace.encoders.base import Encoder
from weightspace.encoders.interview import Interview
from weightspace.encoders.queries import Mode
from weightspace.families import Family
from weightspace.store import Stack


class Querying(Encoder):
    """Runs each model on learned input sequences and reads its responses: it reads the function, not the weights.

    The functionalist encoder of Herrmann et al. (Learning Useful Representations of Recurrent Neural Network Weight
    Matrices, ICML 2024, arXiv 2403.11998). `mode` says where queries come from: `static`, learned sequences;
    `deep_linear`, a linear generator that all queries share (ProbeGen, arXiv 2410.10811); `interactive`, an LSTM core
    that hears each answer before it asks on. Queries are of the task's declared kind and range. Beside the outputs, a
    reader sees numbers of the state that no declared symmetry changes: log norms, cosines with the step before and
    with other queries, how fast two rollouts that differ in one input meet again, the spectrum of the covariance. The
    last is an ingredient of `state_effective_rank`, the one before of memory. States that may be rescaled enter per
    unit alone. Declared noise is 0, and so is what a task gives the initial state. Rollouts are in float64, and
    gradients reach the queries through them. Models with more than `max_inputs` or `max_outputs` are refused.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    symmetry: ClassVar[frozenset[str]] = frozenset({"permutation", "sign", "scale"})
    queries: ClassVar[bool] = True

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
        if width < 1:
            raise ValueError(f"`width` (={width}) must be at least 1.")
        self.interview = Interview(mode, num_queries, num_steps, reader_dim, width, max_inputs, max_outputs)
        self.head = nn.Sequential(
            nn.LayerNorm(self.interview.width),
            nn.Linear(self.interview.width, width),
            nn.SiLU(),
            nn.Linear(width, embedding_dim),
        )

    def refuse_too_large(self, family: Family) -> None:
        """Raise ValueError where a family has more inputs or outputs than this encoder asks and hears."""
        self.interview.refuse_too_large(family)

    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Mean and deviation of each reading over the training models, as buffers."""
        self.interview.fit_standardisation(stacks)

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of stacks."""
        read, _ = self.interview(stacks)
        embedding: Tensor = self.head(read)
        return embedding
