"""Learning without labels: two views of one model are told from views of all other models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.data.augment import Augmentation, GroupMoves
from weightspace.data.batch import Batch
from weightspace.encoders.base import Encoder
from weightspace.objectives.base import Metrics, Objective
from weightspace.store import Stack


class Contrastive(Objective):
    """Find the other view of the same model (SimCLR, Chen et al., ICML 2020, arXiv 2002.05709; InfoNCE, van den Oord et
    al., arXiv 1807.03748).

    With projections p_a = normalised head(embedding) of the views a of all models, a' the other view of a's model and
    N(a) the views of other models, the loss is the mean over a of
    -log exp(p_a . p_a' / t) / (exp(p_a . p_a' / t) + sum over b in N(a) of exp(p_a . p_b / t)).
    To it comes `spread_weight` times -log of the spread of the embeddings (see `spread_of`), since the head, which
    standardises, would let them drift off together. Other snapshots of one model are never negatives. With `negatives`
    "stack", N(a) is of a's own family and size, so that telling families apart earns nothing.

    One view is the snapshot itself, the other a neighbouring snapshot if `neighbours`, the same one if not; `views`
    then change both. They must change what the encoder can see: a model moved by a group that the encoder is invariant
    to has the same embedding, so such moves are refused.
    """

    learned_with = "no_labels"

    def __init__(
        self,
        views: Sequence[Augmentation] = (),
        neighbours: bool = True,
        negatives: Literal["batch", "stack"] = "batch",
        temperature: float = 0.2,
        width: int = 64,
        spread_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.refuse_below(1, width=width)
        self.refuse_below(0, spread_weight=spread_weight)
        if not (neighbours or views):
            raise ValueError("Without `neighbours` and `views` both views are the same; give at least one of them.")
        if negatives not in ("batch", "stack"):
            raise ValueError(f"`negatives` (={negatives!r}) must be 'batch' or 'stack'.")
        if temperature <= 0:
            raise ValueError(f"`temperature` (={temperature}) must be above 0.")
        self.views, self.needs_neighbours, self.negatives = tuple(views), neighbours, negatives
        self.temperature, self.width, self.spread_weight = temperature, width, spread_weight

    head: nn.Sequential

    def build(self, embedding_dim: int) -> None:
        """Make the projection head, which is thrown away after training."""
        self.head = nn.Sequential(
            _Standardised(),
            nn.Linear(embedding_dim, 2 * self.width),
            nn.SiLU(),
            nn.Linear(2 * self.width, self.width),
            _Standardised(),
        )

    def forward(self, encoder: Encoder, batch: Batch) -> tuple[Tensor, Metrics]:
        """InfoNCE over the views of a batch and their spread; metrics `info_nce`, `found` (share of views whose nearest
        candidate is the right one) and `spread` (0 means that the embeddings have collapsed)."""
        self._refuse_unseen(encoder)
        if self.needs_neighbours and len(batch.neighbours) != len(batch.stacks):
            raise ValueError("The batch has no neighbouring snapshots, which Contrastive was told to use.")
        others = batch.neighbours if self.needs_neighbours else batch.stacks
        embeddings = encoder([*self._changed(batch.stacks, 2 * batch.key), *self._changed(others, 2 * batch.key + 1)])
        projected = F.normalize(self.head(embeddings), dim=-1)
        models = torch.arange(len(batch), device=projected.device) if batch.models is None else batch.models
        counts = torch.tensor([len(stack) for stack in batch.stacks], device=projected.device)
        stacks = torch.repeat_interleave(torch.arange(len(counts), device=projected.device), counts)
        losses, found = info_nce(
            projected / self.temperature**0.5, models, None if self.negatives == "batch" else stacks
        )
        spread = spread_of(embeddings)
        metrics: Metrics = {"info_nce": (losses.mean().detach(), len(batch))}
        metrics |= {"found": (found.float().mean(), len(batch)), "spread": (spread.detach(), len(batch))}
        return losses.mean() - self.spread_weight * torch.log(spread + 1e-4), metrics

    def _changed(self, stacks: Sequence[Stack], key: int) -> list[Stack]:
        """The stacks as `views` change them, with the draws of this key."""
        changed = list(stacks)
        for place, transform in enumerate(self.views):
            transform.reseed((key + 0x9E3779B97F4A7C15 * (place + 1)) % 2**63)
            changed = [transform(stack) for stack in changed]
        return changed

    def _refuse_unseen(self, encoder: Encoder) -> None:
        for transform in self.views:
            if not isinstance(transform, GroupMoves):
                continue
            moves = {"permutation"} & encoder.symmetry if transform.permutations else set()
            moves |= {"sign", "scale"} if transform.gauges and {"sign", "scale"} <= encoder.symmetry else set()
            if moves:
                raise ValueError(
                    f"{type(encoder).__name__} is invariant to {sorted(moves)}, so that views which GroupMoves makes "
                    "by it teach it nothing; leave them out and use MaskEdges, WeightNoise or `neighbours`."
                )


class _Standardised(nn.Module):
    """Values (views, width) less their mean over the batch and divided by their deviation there, as in SimCLR's head.

    At first all embeddings are almost equal. What they share must not drown what tells them apart, or training ends in
    collapse.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Standardised values (views, width)."""
        deviation = values - values.mean(0)
        return deviation * torch.rsqrt(deviation.square().mean(0) + 1e-5)


def info_nce(projected: Tensor, models: Tensor, stacks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss (views,) and whether the right view is the nearest (views,), of projections (views, width).

    The views of models (models,) stand twice, one after another. Candidates are the other view and all views of other
    models; of the same stack only, where `stacks` (models,) is given.
    """
    similarity = projected @ projected.T
    models = models.repeat(2)
    candidate = models[:, None] != models[None]
    if stacks is not None:
        candidate &= stacks.repeat(2)[:, None] == stacks.repeat(2)[None]
    places = torch.arange(len(models), device=projected.device)
    right = places.roll(len(models) // 2)
    candidate[places, right] = True
    similarity = similarity.masked_fill(~candidate, -torch.inf)
    return F.cross_entropy(similarity, right, reduction="none"), similarity.argmax(1) == right


def spread_of(embeddings: Tensor) -> Tensor:
    """How far embeddings (models, embedding) are apart: mean squared distance to their mean over mean squared length.

    0 where all are equal (collapse), 1 where they surround the origin.
    """
    deviation = (embeddings - embeddings.mean(0)).square().sum(-1).mean()
    return deviation / embeddings.square().sum(-1).mean().clamp(min=1e-12)
