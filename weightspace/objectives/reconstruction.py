"""Learning without labels: weights told from the embedding, up to the symmetry of the weight space."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from weightspace.data.augment import MaskEdges
from weightspace.data.batch import Batch, Training
from weightspace.encoders.base import Encoder
from weightspace.objectives.base import Metrics, Objective
from weightspace.objectives.completion import Completion
from weightspace.objectives.regression import head, moments, regression, standardised
from weightspace.store import Stack
from weightspace.summaries import NUM_SUMMARIES, summaries_of


class Reconstruction(Objective):
    """Rebuild what was hidden from the encoder, which reads every model with a `share` of its connections set to 0
    (as masked autoencoders do, He et al., CVPR 2022, arXiv 2111.06377, for weights that have a symmetry).

    Two errors are added. From the embedding alone: summaries of the whole model that its symmetry leaves alone (sizes
    and quantiles by connection type and role, singular values, traces of powers of the recurrent maps; see
    `summaries_of`), in units of their spread over the training models. From the embedding and the visible weights: the
    hidden weights (see `Completion`), `edge_weight` times. Both are invariant to permutations of hidden units and to
    sign flips if the encoder is; the units of a model stay unnamed, so nothing asks the embedding for their order.
    Positive rescaling changes most summaries: train on it with `GroupMoves` only where that is meant.
    """

    learned_with = "no_labels"
    symmetry: ClassVar[frozenset[str]] = frozenset({"permutation", "sign"})
    """What leaves the loss unchanged, with an encoder that states it too."""

    def __init__(self, share: float = 0.15, width: int = 64, edge_weight: float = 1.0) -> None:
        super().__init__()
        self.refuse_below(1, width=width)
        self.refuse_below(0, edge_weight=edge_weight)
        self.masking = MaskEdges(share)
        self.share, self.width, self.edge_weight = share, width, edge_weight
        self.register_buffer("mean", torch.zeros(NUM_SUMMARIES))
        self.register_buffer("scale", torch.zeros(NUM_SUMMARIES))

    mean: Tensor
    scale: Tensor
    """Standard deviations over training models; 0 for summaries that do not vary there, which are left out."""
    completion: Completion
    summaries: nn.Sequential

    def build(self, embedding_dim: int) -> None:
        """Make the two heads."""
        self.completion = Completion(embedding_dim, self.width)
        self.summaries = head(embedding_dim, 2 * self.width, NUM_SUMMARIES)

    def fit_scales(self, training: Training) -> None:
        """Mean and standard deviation of each summary over the training models that have it."""
        mean, scale = moments(summaries_of(stack) for stack in training.stacks)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, encoder: Encoder, batch: Batch) -> tuple[Tensor, Metrics]:
        """Sum of the two errors; metrics `r2_summaries` (share of their variance explained), `hidden_error` (squared
        error of hidden weights over their mean square: 1 is what predicting 0 costs)."""
        self.masking.reseed(batch.key)
        return self.loss(encoder, batch.stacks, [self.masking.draw(stack) for stack in batch.stacks])

    def loss(self, encoder: Encoder, stacks: list[Stack], hidden: list[dict[str, Tensor]]) -> tuple[Tensor, Metrics]:
        """Loss and metrics where these entries are hidden."""
        embeddings = encoder([MaskEdges.hide(*pair) for pair in zip(stacks, hidden, strict=True)])
        parts = embeddings.split([len(stack) for stack in stacks])
        completed = [self.completion(*one) for one in zip(stacks, hidden, parts, strict=True)]
        errors, counts = (torch.cat(side) for side in zip(*completed, strict=True))
        hidden_error = errors.sum() / counts.sum().clamp(min=1)
        values = torch.cat([summaries_of(stack) for stack in stacks])
        known, wanted = standardised(values, self.mean, self.scale)
        summary_loss, explained, count = regression(self.summaries(embeddings), known, wanted)
        metrics: Metrics = {"hidden_error": (hidden_error.detach(), int(counts.sum()))}
        if count:
            metrics["r2_summaries"] = (explained, count)
        return summary_loss + self.edge_weight * hidden_error, metrics
