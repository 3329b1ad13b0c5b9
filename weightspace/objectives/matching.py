"""Learning without labels: weights and behaviour of one model are told from those of all others of its cell."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.data.batch import Batch, Training
from weightspace.encoders.base import Encoder
from weightspace.objectives.base import Metrics, Objective


class Matching(Objective):
    """Find the stored rollouts that belong to the weights, and the weights that belong to the rollouts (as CLIP does
    for images and captions, Radford et al., ICML 2021, arXiv 2103.00020).

    a_i are normalised projections of embeddings, b_i of the mean state of a GRU that reads `sequences_per_model` stored
    rollouts, inputs beside outputs (as asinh). The loss is the mean over models, and over both directions, of
    -log exp(a_i . b_i / t) / sum over j in C(i) of exp(a_i . b_j / t), where C(i) is the cell of i in the batch:
    family, sizes, task and step. Between cells nothing is contrasted, or the code would latch on what tells cells
    apart. A model alone in its cell is left out.
    """

    learned_with = "no_labels"
    needs_rollouts = True

    def __init__(
        self,
        max_input_size: int = 16,
        max_output_size: int = 16,
        width: int = 64,
        sequences_per_model: int = 4,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        self.refuse_below(1, max_input_size=max_input_size, max_output_size=max_output_size, width=width)
        self.refuse_below(1, sequences_per_model=sequences_per_model)
        if temperature <= 0:
            raise ValueError(f"`temperature` (={temperature}) must be above 0.")
        self.sizes = {"input": max_input_size, "output": max_output_size}
        self.width, self.sequences_per_model, self.temperature = width, sequences_per_model, temperature
        self.read = nn.ModuleDict({side: nn.Linear(size, width) for side, size in self.sizes.items()})
        self.reader = nn.GRU(width, width, batch_first=True)
        self.of_behaviour = nn.Linear(width, width)

    of_weights: nn.Linear

    def build(self, embedding_dim: int) -> None:
        """Make the projection of embeddings."""
        self.of_weights = nn.Linear(embedding_dim, self.width)

    def fit_scales(self, training: Training) -> None:
        """Refuse a zoo whose sizes the reader of rollouts cannot hold."""
        self._refuse_larger(input=training.input_size, output=training.output_size)

    def _refuse_larger(self, **sizes: int) -> None:
        for axis, size in sizes.items():
            if size > self.sizes[axis]:
                raise ValueError(
                    f"Axis '{axis}' of the zoo has size {size}, but Matching was made for `max_{axis}_size` "
                    f"(={self.sizes[axis]}); train with `max_{axis}_size` {size} or more."
                )

    def forward(self, encoder: Encoder, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean loss of both directions; metric `found`, the share of models whose rollouts are the nearest of their
        cell."""
        if not batch.rollouts or batch.cells is None:
            raise ValueError("The batch has no rollouts, which Matching reads; build the zoo with stored rollouts.")
        weights = F.normalize(self.of_weights(encoder(batch.stacks)), dim=-1)
        similarity = weights @ F.normalize(self._behaviour(batch), dim=-1).T / self.temperature
        same = batch.cells[:, None] == batch.cells[None]
        similarity = similarity.masked_fill(~same, -torch.inf)
        judged = (same.sum(1) > 1).nonzero()[:, 0]
        if not len(judged):
            return 0 * weights.sum(), {}
        losses = [F.cross_entropy(side[judged], judged) for side in (similarity, similarity.T)]
        found = (similarity.argmax(1)[judged] == judged).float().mean()
        loss = torch.stack(losses).mean()
        return loss, {"info_nce": (loss.detach(), len(judged)), "found": (found, len(judged))}

    def _behaviour(self, batch: Batch) -> Tensor:
        """Projections (models, width) of what the models did, in the order of the batch."""
        generator = torch.Generator().manual_seed(batch.key)
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, (x, outputs) in enumerate(batch.rollouts):
            alike[(*x.shape[1:], outputs.shape[-1])].append(i)
        found: dict[int, Tensor] = {}
        for (sequences, *_), members in alike.items():
            few = min(self.sequences_per_model, sequences)
            chosen = torch.randperm(sequences, generator=generator)[:few] if self.training else torch.arange(few)
            x, outputs = (torch.cat([batch.rollouts[i][side][:, chosen] for i in members]) for side in (0, 1))
            self._refuse_larger(input=x.shape[-1], output=outputs.shape[-1])
            read = self._linear("input", x) + self._linear("output", torch.asinh(outputs))
            states = self.reader(read.flatten(0, 1))[0].mean(1).unflatten(0, (-1, few)).mean(1)
            counts = [len(batch.stacks[i]) for i in members]
            found |= dict(zip(members, self.of_behaviour(states).split(counts), strict=True))
        return torch.cat([found[i] for i in sorted(found)])

    def _linear(self, side: str, values: Tensor) -> Tensor:
        """A linear map of values (..., axis), of which an axis shorter than the largest uses the first columns."""
        layer = self.read[side]
        assert isinstance(layer, nn.Linear)
        return F.linear(values, layer.weight[:, : values.shape[-1]], layer.bias)
