"""Learning without labels: an emulator, told only the embedding, does what the model does."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.data.batch import Batch, Training
from weightspace.encoders.base import Encoder
from weightspace.objectives.base import Metrics
from weightspace.objectives.emulator import Emulator


class Emulation(Emulator):
    """Imitate stored rollouts from the embedding (Herrmann et al., Learning Useful Representations of Recurrent Neural
    Network Weight Matrices, ICML 2024, arXiv 2403.11998).

    One recurrent emulator serves all models (see `Emulator`), outputs W_o g_t. The paper adds the projection P e of the
    embedding at the first step alone; here it is added at every step, so that a short emulator need not spend its
    memory on remembering whom it imitates, at no cost. Categorical outputs are compared by the Kullback-Leibler
    divergence of the softmaxed outputs (model from emulator), head by head where a task has several, continuous ones by
    the squared error in units of each model's own output variance. Tasks with fewer outputs use the first rows of W_o.
    """

    learned_with = "no_labels"
    needs_rollouts = True

    def __init__(
        self,
        max_input_size: int = 16,
        max_output_size: int = 16,
        width: int = 128,
        num_layers: int = 1,
        sequences_per_model: int = 4,
        embedding_weight: float = 0.0,
        rank: int = 0,
    ) -> None:
        super().__init__(max_input_size, width, num_layers, rank)
        self.refuse_below(1, max_output_size=max_output_size, sequences_per_model=sequences_per_model)
        self.refuse_below(0, embedding_weight=embedding_weight)
        self.max_output_size, self.sequences_per_model = max_output_size, sequences_per_model
        self.embedding_weight = embedding_weight
        self.write = nn.Linear(width, max_output_size)

    def fit_scales(self, training: Training) -> None:
        """Refuse a zoo whose sizes the emulator cannot hold."""
        self.refuse_longer("input", training.input_size, self.max_input_size)
        self.refuse_longer("output", training.output_size, self.max_output_size)

    def forward(self, encoder: Encoder, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean divergence over models; metrics `divergence` and `agreement` (share of equal best classes)."""
        if not batch.rollouts:
            raise ValueError("The batch has no rollouts, which Emulation imitates; build the zoo with stored rollouts.")
        embeddings = encoder(batch.stacks)
        counts = [len(stack.rows) for stack in batch.stacks]
        generator = torch.Generator().manual_seed(batch.key)
        divergences, agreements = [], []
        for (*_, kind, classes), members in self._alike(batch).items():
            e = torch.cat([embeddings.split(counts)[i] for i in members])
            x, outputs = (torch.cat([batch.rollouts[i][side] for i in members]) for side in (0, 1))
            chosen = self.choose(x.shape[1], self.sequences_per_model, generator)
            emulated, outputs = self._emulate(e, x[:, chosen], outputs.shape[-1]), outputs[:, chosen]
            if kind == "categorical":
                wanted, got = _by_head(outputs, classes), _by_head(emulated, classes)
                divergences.append(_divergence(wanted, got))
                agreements.append((wanted.argmax(-1) == got.argmax(-1)).float().flatten(1).mean(1))
            else:
                divergences.append(_relative_error(outputs, emulated))
        divergence = torch.cat(divergences).mean()
        loss = divergence + self.embedding_weight * embeddings.square().mean()
        metrics: Metrics = {"divergence": (divergence.detach(), len(batch))}
        if agreements:
            agreement = torch.cat(agreements)
            metrics["agreement"] = (agreement.mean(), len(agreement))
        return loss, metrics

    def _alike(self, batch: Batch) -> dict[tuple[Any, ...], list[int]]:
        """Stacks whose rollouts have the same sizes, kind and heads, which the emulator runs together."""
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        heads = batch.classes_per_head or [None] * len(batch.rollouts)
        for i, ((x, outputs), *layout) in enumerate(zip(batch.rollouts, batch.output_kinds, heads, strict=True)):
            alike[(*x.shape[1:], outputs.shape[-1], *layout)].append(i)
        return alike

    def _emulate(self, e: Tensor, x: Tensor, output_size: int) -> Tensor:
        """Outputs (models, sequences, time, output) of the emulator for embeddings (models, embedding) and inputs x."""
        self.refuse_longer("output", output_size, self.max_output_size)
        return F.linear(self.emulate(e, x), self.write.weight[:output_size], self.write.bias[:output_size])


def _by_head(outputs: Tensor, classes: int | None) -> Tensor:
    """Outputs (models, sequences, time, output) as (models, sequences, time, head, class); None: one head of all."""
    classes = classes or outputs.shape[-1]
    if outputs.shape[-1] % classes:
        raise ValueError(
            f"The zoo stores {outputs.shape[-1]} outputs and says that each head has {classes} classes, which does not "
            "divide them; run `zoo-builder verify` on it, or build it again."
        )
    by_head: Tensor = outputs.unflatten(-1, (-1, classes))
    return by_head


def _divergence(outputs: Tensor, emulated: Tensor) -> Tensor:
    """KL divergence (models,) in nats, mean over heads, of outputs (models, sequences, time, head, class)."""
    wanted, got = F.log_softmax(outputs, dim=-1), F.log_softmax(emulated, dim=-1)
    return F.kl_div(got, wanted, reduction="none", log_target=True).sum(-1).mean((1, 2, 3))


def _relative_error(outputs: Tensor, emulated: Tensor) -> Tensor:
    """Squared error (models,) over the variance of the model's own outputs (models, sequences, time, output)."""
    variance = outputs.flatten(1).var(1, correction=0).clamp(min=1e-6)
    return (outputs - emulated).square().mean((1, 2, 3)) / variance
