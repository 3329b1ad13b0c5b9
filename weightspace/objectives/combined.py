"""Several objectives at once, each with a weight, which share one reading of the models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from weightspace.data.batch import Batch, Training
from weightspace.data.targets import Target
from weightspace.encoders.base import Encoder
from weightspace.objectives.base import Metrics, Objective
from weightspace.store import Stack


class Combined(Objective):
    """The weighted sum of the losses of `parts`; weights are 1 where none are given.

    The encoder reads the models of a batch once for all parts that read them as they are; a part that hides
    connections, or makes views, has readings of its own. Metrics are named PART.METRIC, and PART.loss is a part's loss
    before its weight, PART being its class (with a number where a class comes twice).
    """

    learned_with: Literal["labels", "no_labels"] = "no_labels"
    """What it is until a part of weight above 0 learns from labels."""

    def __init__(self, parts: Sequence[Objective], weights: Sequence[float] = ()) -> None:
        super().__init__()
        if not parts:
            raise ValueError("`parts` is empty; name at least one objective.")
        weights = tuple(weights) or (1.0,) * len(parts)
        if len(weights) != len(parts):
            raise ValueError(f"`weights` has {len(weights)} numbers, but there are {len(parts)} `parts`; give as many.")
        for weight in weights:
            self.refuse_below(0, weights=weight)
        if not any(weights):
            raise ValueError(f"`weights` (={list(weights)}) are all 0, which teaches nothing.")
        self.weights, self.parts = weights, nn.ModuleList(parts)
        if any(part.learned_with == "labels" for part, weight in zip(parts, weights, strict=True) if weight):
            self.learned_with = "labels"
        self.needs_rollouts = any(part.needs_rollouts for part in parts)
        self.needs_neighbours = any(part.needs_neighbours for part in parts)
        names = [type(part).__name__ for part in parts]
        self.names = [
            f"{name}{names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)
        ]

    @property
    def label_adjacent(self) -> tuple[str, ...]:
        """Those of all parts, once each."""
        return tuple(dict.fromkeys(name for part in self._objectives() for name in part.label_adjacent))

    @property
    def targets(self) -> tuple[Target, ...]:
        """Those of all parts, one part after another."""
        return tuple(target for part in self._objectives() for target in part.targets)

    def build(self, embedding_dim: int) -> None:
        """Build every part."""
        for part in self._objectives():
            part.build(embedding_dim)

    def fit_scales(self, training: Training) -> None:
        """Let every part learn its scales from its own targets."""
        for part, columns in zip(self._objectives(), self._columns(), strict=True):
            targets, cell_means = training.targets[:, columns], training.cell_means[:, columns]
            part.fit_scales(replace(training, targets=targets, cell_means=cell_means))

    def forward(self, encoder: Encoder, batch: Batch) -> tuple[Tensor, Metrics]:
        """Weighted sum of the losses, and the metrics of all parts."""
        once = _Once(encoder)
        losses, metrics = [], Metrics()
        for name, part, columns in zip(self.names, self._objectives(), self._columns(), strict=True):
            part_of_batch = replace(batch, targets=batch.targets[:, columns], cell_means=batch.cell_means[:, columns])
            loss, found = part(once, part_of_batch)
            losses.append(loss)
            metrics[f"{name}.loss"] = (loss.detach(), len(batch))
            metrics |= {f"{name}.{metric}": value for metric, value in found.items()}
        return torch.stack([w * loss for w, loss in zip(self.weights, losses, strict=True)]).sum(), metrics

    def _objectives(self) -> Iterable[Objective]:
        for part in self.parts:
            assert isinstance(part, Objective)
            yield part

    def _columns(self) -> list[slice]:
        """Place of each part's targets among those of all."""
        ends = [0]
        for part in self._objectives():
            ends.append(ends[-1] + len(part.targets))
        return [slice(*pair) for pair in pairwise(ends)]


class _Once(Encoder):
    """An encoder for one batch: the same stacks, asked for again, have the embeddings that are there already."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.embedding_dim)
        self.encoder = encoder
        self.symmetry, self.max_sizes = encoder.symmetry, encoder.max_sizes  # type: ignore[misc]
        self._read: list[tuple[list[Stack], Tensor]] = []

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim)."""
        for known, embeddings in self._read:
            if len(known) == len(stacks) and all(one is other for one, other in zip(known, stacks, strict=True)):
                return embeddings
        self._read.append((list(stacks), self.encoder(stacks)))
        return self._read[-1][1]

    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """The encoder's own."""
        self.encoder.fit_standardisation(stacks)
