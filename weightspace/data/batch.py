"""What the data module hands to an objective: batches of models, and what scales may be learned from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from weightspace.store import Stack


@dataclass(kw_only=True)
class Batch:
    """Models to learn from. Each stack is of one family and one shape, so that nothing is padded.

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
    """Per stack x (models, sequences, time, input) and outputs (models, sequences, time, output), if asked for."""
    output_kinds: list[str] = field(default_factory=list)
    """Per stack what its task's outputs are: "categorical" (logits) or "continuous"."""
    classes_per_head: list[int | None] = field(default_factory=list)
    """Per stack how many logits each of several heads has, side by side; None, or an empty list: there is one head."""
    neighbours: list[Stack] = field(default_factory=list)
    """Per stack a neighbouring snapshot of each of its models (the same one where there is no other), if asked for."""
    models: Tensor | None = None
    """(models,) numbers that snapshots of one model share, if neighbours were asked for."""
    cells: Tensor | None = None
    """(models,) numbers that models of one cell (family, sizes, task, step) share."""
    key: int = 0
    """Seeds every draw made for this batch: a pure function of (seed, epoch, place in the epoch), 0 when evaluating."""

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
    """What an objective may learn its scales from: the training rows, and nothing else.

    targets, cell_means (rows, target) float64; input_size, output_size: the largest of the training and validation
    rows. stacks: the weights, a chunk at a time, as often as they are gone through.
    """

    targets: Tensor
    cell_means: Tensor
    input_size: int
    output_size: int
    stacks: Iterable[Stack] = ()
