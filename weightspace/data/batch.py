"""Inputs of objectives: batches of models, and the training rows that scales are fitted on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from weightspace.store import Stack


@dataclass(kw_only=True)
class Batch:
    """A batch of models. Each stack is of one family and one shape, so that nothing is padded.

    All tensors follow the order of the stacks, one after another.
    """

    stacks: list[Stack]
    rows: Tensor
    """(models,) row numbers in models.parquet."""
    targets: Tensor
    """(models, target) float32, NaN where a label does not apply."""
    cell_means: Tensor
    """(models, target) float32: training mean of the model's cell, NaN where training never saw it."""
    rollouts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Per stack x (models, sequences, time, input) and outputs (models, sequences, time, output), if requested."""
    output_kinds: list[str] = field(default_factory=list)
    """Per stack the kind of its task's outputs: "categorical" (logits) or "continuous"."""
    classes_per_head: list[int | None] = field(default_factory=list)
    """Per stack the number of logits of each of several heads; None, or an empty list: there is one head."""
    neighbours: list[Stack] = field(default_factory=list)
    """Per stack a neighbouring snapshot of each model (itself where there is no other), if requested."""
    models: Tensor | None = None
    """(models,) integer code of the model of each snapshot, if neighbours were requested."""
    cells: Tensor | None = None
    """(models,) integer code of the cell (family, sizes, task, step) of each model."""
    key: int = 0
    """Seed of every draw for this batch: a pure function of (seed, epoch, number of the batch), 0 in evaluation."""

    def __len__(self) -> int:
        return self.rows.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            stacks=[stack.to(device) for stack in self.stacks],
            rows=self.rows.to(device),
            targets=self.targets.to(device),
            cell_means=self.cell_means.to(device),
            rollouts=[(x.to(device), outputs.to(device)) for x, outputs in self.rollouts],
            neighbours=[stack.to(device) for stack in self.neighbours],
            models=None if self.models is None else self.models.to(device),
            cells=None if self.cells is None else self.cells.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """The data that an objective fits its scales on: the training rows alone.

    targets, cell_means (rows, target) float64; input_size, output_size: the largest of the training and validation
    rows. stacks: the weights, a chunk at a time; each iteration reads them again.
    """

    targets: Tensor
    cell_means: Tensor
    input_size: int
    output_size: int
    stacks: Iterable[Stack] = ()
