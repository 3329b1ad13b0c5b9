"""The contract of an encoder: stacks of models in, one embedding per model out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from weightspace.construction import Constructed
from weightspace.store import Stack


class Encoder(Constructed, nn.Module, ABC):
    """Reads whole weight spaces. Subclasses state their symmetry, which `weightspace check encoders` verifies."""

    symmetry: ClassVar[frozenset[str]] = frozenset()
    """What leaves embeddings unchanged: "permutation" (of hidden units and factors), "sign", "scale"."""
    max_sizes: ClassVar[Mapping[str, int]] = {}
    """Largest axis sizes an encoder can read, by node kind; empty where it reads any size."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"`embedding_dim` (={embedding_dim}) must be at least 1.")
        self.embedding_dim = embedding_dim

    @abstractmethod
    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of all models of the stacks, one stack after another."""

    @abstractmethod
    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Learn input scales from training models; they are buffers, and so part of the checkpoint."""
