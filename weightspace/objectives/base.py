"""The contract of an objective: an encoder and a batch in, a loss and metrics out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from weightspace.components.construction import Constructed
from weightspace.data.batch import Batch, Training
from weightspace.data.targets import Target
from weightspace.encoders.base import Encoder

Metrics = dict[str, tuple[Tensor, int]]
"""Name -> (mean, number of values it is the mean of), so that means over an epoch are exact."""


class Objective(Constructed, nn.Module, ABC):
    """What an encoder is trained for. Parameter and buffer shapes follow from the constructor and `build` alone."""

    learned_with: Literal["labels", "no_labels"]
    """Embeddings learned with and without labels are reported apart."""
    needs_rollouts: bool = False
    """Whether batches bring stored rollouts along."""
    needs_neighbours: bool = False
    """Whether batches bring a neighbouring snapshot of every model along."""

    @staticmethod
    def refuse_below(lowest: float, **settings: float) -> None:
        """Raise ValueError for a setting below what makes sense, by its name."""
        for name, value in settings.items():
            if not lowest <= value < math.inf:
                raise ValueError(f"`{name}` (={value}) must be at least {lowest} and finite.")

    @property
    def label_adjacent(self) -> tuple[str, ...]:
        """Label columns that are computed from what this objective imitates without being told them.

        Reports mark readings of these labels, which say less of what was learned than readings of others do.
        """
        return ()

    @property
    def targets(self) -> tuple[Target, ...]:
        """Labels a batch must bring along, in the order of its target axis."""
        return ()

    @abstractmethod
    def build(self, embedding_dim: int) -> None:
        """Make the modules that depend on the width of the embedding; called once, before any training."""

    def fit_scales(self, training: Training) -> None:
        """Learn scales from the training rows; they are buffers, and so part of the checkpoint."""

    @abstractmethod
    def forward(self, encoder: Encoder, batch: Batch) -> tuple[Tensor, Metrics]:
        """Loss (scalar) and metrics of one batch."""
