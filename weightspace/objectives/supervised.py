"""Learning from labels: plain values and what is left of them within a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.data.batch import Batch, Training
from weightspace.data.targets import Target
from weightspace.encoders.base import Encoder
from weightspace.objectives.base import Metrics, Objective

ROUNDING = 1e-6
"""Spread, as a share of the largest label, below which differences of labels are rounding."""


class Supervised(Objective):
    """Predict labels from embeddings, each in two columns.

    One column is the standardised label, the other its standardised residual within its cell (label minus the training
    mean of its family x size x task x step), so that a linear probe finds both. Labels that do not apply are left out.
    With `head_size` 0 the head is linear, which is what makes the embedding linearly readable.
    """

    learned_with = "labels"

    def __init__(
        self,
        targets: Sequence[str | Target],
        loss: Literal["mse", "huber"] = "mse",
        residual_weight: float = 1.0,
        head_size: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.refuse_below(0, residual_weight=residual_weight, head_size=head_size, dropout=dropout)
        if not targets:
            raise ValueError("`targets` is empty; name at least one label column of the zoo.")
        if isinstance(targets, str | Mapping):
            raise ValueError(f"`targets` (={targets!r}) must be a list, of one target or more.")
        if loss not in ("mse", "huber"):
            raise ValueError(f"`loss` (={loss!r}) must be 'mse' or 'huber'.")
        self._targets = tuple(Target.of(target) for target in targets)
        self.loss, self.residual_weight, self.head_size, self.dropout = loss, residual_weight, head_size, dropout
        count = len(self._targets)
        self.register_buffer("mean", torch.zeros(2, count))
        self.register_buffer("scale", torch.ones(2, count))

    mean: Tensor
    scale: Tensor
    head: nn.Module

    @property
    def targets(self) -> tuple[Target, ...]:
        """Labels to predict."""
        return self._targets

    def build(self, embedding_dim: int) -> None:
        """Make the head (embedding -> 2 columns per target)."""
        columns = 2 * len(self._targets)
        layers: list[nn.Module] = [nn.Dropout(self.dropout)]
        if self.head_size:
            layers += [nn.Linear(embedding_dim, self.head_size), nn.SiLU(), nn.Dropout(self.dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(self.head_size or embedding_dim, columns))

    def fit_scales(self, training: Training) -> None:
        """Mean and standard deviation of each target and of its residuals within cells."""
        residuals = training.targets - training.cell_means
        largest = training.targets.nan_to_num(0.0).abs().amax(0)
        for index, values in enumerate((training.targets, residuals)):
            known = ~values.isnan()
            count = known.sum(0).clamp(min=1)
            mean = values.nan_to_num(0.0).sum(0) / count
            deviation = torch.where(known, values - mean, 0.0)
            scale = torch.sqrt(deviation.square().sum(0) / count)
            # A label that is constant (in its cells) has nothing to teach; what rounding leaves must not be blown up,
            # and batches hold labels in float32.
            constant = scale <= ROUNDING * largest
            self.mean[index].copy_(mean)
            self.scale[index].copy_(torch.where(constant, 1.0, scale))

    def forward(self, encoder: Encoder, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean loss over the targets that apply; metrics `r2` and `r2_within_cell` of each target."""
        # (models, 2, target): the plain column, then the residual column.
        predicted = self.head(encoder(batch.stacks)).unflatten(-1, (2, -1))
        wanted = torch.stack([batch.targets, batch.targets - batch.cell_means], dim=1)
        wanted = (wanted - self.mean) / self.scale
        known = ~wanted.isnan()
        wanted = torch.where(known, wanted, predicted.detach())
        elementwise = F.mse_loss if self.loss == "mse" else F.huber_loss
        losses = elementwise(predicted, wanted, reduction="none")
        # Each target counts the same, however many models of the batch it applies to.
        per_target = losses.sum(0) / known.sum(0).clamp(min=1)
        weights = per_target.new_tensor([1.0, self.residual_weight])[:, None] * known.any(0)
        loss = (weights * per_target).sum() / weights.sum().clamp(min=1e-12)
        return loss, self._metrics((predicted.detach() - wanted).square().sum(0), known.sum(0))

    def predict(self, embedding: Tensor) -> Tensor:
        """Labels (models, target) in their units from embeddings (models, embedding_dim)."""
        plain = self.head(embedding).unflatten(-1, (2, -1))[:, 0]
        labels: Tensor = plain * self.scale[0] + self.mean[0]
        return labels

    def _metrics(self, squares: Tensor, counts: Tensor) -> Metrics:
        """1 - mean squared error in units of the training variance, from sums (2, target)."""
        scores = (1 - squares / counts.clamp(min=1)).unbind()
        names = ("r2", "r2_within_cell")
        known = counts.tolist()
        return {
            f"{name}.{target.name}": (scores[row][column], known[row][column])
            for row, name in enumerate(names)
            for column, target in enumerate(self._targets)
            if known[row][column]
        }
