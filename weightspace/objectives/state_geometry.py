"""Learning without labels: an emulator, told only the embedding, holds states that lie to each other as the model's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from weightspace.data.batch import Batch, Training
from weightspace.encoders.base import Encoder
from weightspace.features import OF_COVARIANCES, OF_FADING
from weightspace.objectives.base import Metrics
from weightspace.objectives.behaviour import Behaviour, draw_inputs, observe, responses, share_suffix
from weightspace.objectives.emulator import Emulator
from weightspace.objectives.gram import distance, gram, gram_of_states
from weightspace.objectives.regression import head, moments, regression, squared_error, standardised
from weightspace.store import Stack
from weightspace.summaries import NUM_MARKOV, NUM_SUMMARIES, markov_summaries_of, summaries_of

PLACES = 96
"""About how many places (sequence, time) are compared."""
KICK_STEPS = 16
SIZE_WEIGHT = 0.05
Errors = dict[str, Tensor]


class StateGeometry(Emulator):
    """Imitate the geometry of a model's states: which of them are alike (representational similarity, Kriegeskorte et
    al., Frontiers in Systems Neuroscience 2008; to be told from an embedding of the weights).

    A native rollout on the zoo's stored inputs, or on `drawn_steps` of standard normal ones, gives states h_st at about
    96 places: `sequences_per_model` sequences s at the same times t. K = H H^T of the centred states is divided by its
    mean diagonal, each state of each layer by its own (see `gram_of_states`); permutations, signs and rotations of
    units leave K alone. The emulator's states g_st are scaled and shifted by the embedding e (FiLM, Perez et al., AAAI
    2018), z = A (g * (1 + f(e)) + b(e)), width / 4 wide, and the loss is |K - Z Z^T|^2 / |K|^2 plus 0.05 times the
    squared error of the log mean diagonal per unit told from e.

    Every two sequences share the last `shared_suffix` (a share, none if 0) of their inputs, so that K shows what is
    remembered. Rollouts and summaries are computed on the CPU, where the native engine is, whatever the device of the
    training. Three errors are added, with weights that are 0 by default: `outputs`, of the Gram matrix of outputs;
    `kicks`, of the log of what is left k steps after a kick of the state, over sqrt(k) (see `responses`); `summaries`,
    of invariant summaries of the weights and of their Markov sizes (see `summaries_of`, `markov_summaries_of`). No
    gradient flows into a rollout.
    """

    learned_with = "no_labels"

    def __init__(
        self,
        max_input_size: int = 16,
        width: int = 128,
        sequences_per_model: int = 4,
        shared_suffix: float = 0.0,
        outputs: float = 0.0,
        kicks: float = 0.0,
        summaries: float = 0.0,
        drawn_steps: int = 0,
    ) -> None:
        super().__init__(max_input_size, width)
        self.refuse_below(4, width=width)
        self.refuse_below(1, sequences_per_model=sequences_per_model)
        self.refuse_below(0, outputs=outputs, kicks=kicks, summaries=summaries, drawn_steps=drawn_steps)
        if not 0 <= shared_suffix < 1:
            raise ValueError(f"`shared_suffix` (={shared_suffix}) must be at least 0 and below 1.")
        if drawn_steps == 1:
            raise ValueError(f"`drawn_steps` (={drawn_steps}) must be 0, for stored inputs, or at least 2.")
        self.sequences_per_model, self.shared_suffix, self.drawn_steps = sequences_per_model, shared_suffix, drawn_steps
        self.weights = {"geometry": 1.0, "size": SIZE_WEIGHT, "outputs": outputs, "kicks": kicks}
        self.summary_weight, self.needs_rollouts = summaries, drawn_steps == 0
        self.register_buffer("mean", torch.zeros(NUM_SUMMARIES + NUM_MARKOV))
        self.register_buffer("scale", torch.zeros(NUM_SUMMARIES + NUM_MARKOV))

    mean: Tensor
    scale: Tensor
    film: nn.ModuleDict
    write: nn.ModuleDict
    size: nn.Linear
    kicked: nn.Linear
    summary: nn.Sequential

    @property
    def label_adjacent(self) -> tuple[str, ...]:
        """Those of the state covariance, whose spectrum is K's; with `kicks` those of products of Jacobians."""
        return OF_COVARIANCES + (OF_FADING if self.weights["kicks"] else ())

    def build(self, embedding_dim: int) -> None:
        """Make the projection, what scales and shifts the emulator's states and reads them, and the heads."""
        super().build(embedding_dim)
        parts = ["geometry", *(["outputs"] if self.weights["outputs"] else [])]
        self.film = nn.ModuleDict({part: nn.Linear(embedding_dim, 2 * self.width) for part in parts})
        self.write = nn.ModuleDict({part: nn.Linear(self.width, self.width // 4, bias=False) for part in parts})
        self.size = nn.Linear(embedding_dim, 1)
        if self.weights["kicks"]:
            self.kicked = nn.Linear(embedding_dim, KICK_STEPS)
        if self.summary_weight:
            self.summary = head(embedding_dim, self.width, NUM_SUMMARIES + NUM_MARKOV)

    def fit_scales(self, training: Training) -> None:
        """Refuse a zoo whose inputs the emulator cannot hold; learn mean and deviation of summaries, if asked for."""
        self.refuse_longer("input", training.input_size, self.max_input_size)
        if self.summary_weight:
            mean, scale = moments(_summaries(stack) for stack in training.stacks)
            self.mean.copy_(mean)
            self.scale.copy_(scale)

    def forward(self, encoder: Encoder, batch: Batch) -> tuple[Tensor, Metrics]:
        """Weighted sum of the errors, each a mean over models; metrics are the errors and `r2_summaries`.

        Models with a state that is not finite, or none that varies, are left out of the errors that need it.
        """
        if not (batch.rollouts or self.drawn_steps):
            raise ValueError(
                "The batch has no rollouts, whose inputs StateGeometry uses; build the zoo with stored rollouts, or "
                "set `drawn_steps` for inputs that are drawn."
            )
        embeddings = encoder(batch.stacks)
        parts = embeddings.split([len(stack) for stack in batch.stacks])
        stacks = [stack.to("cpu") for stack in batch.stacks]
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Behaviour]]] = defaultdict(list)
        for i, (stack, e) in enumerate(zip(stacks, parts, strict=True)):
            x = self._inputs(stack, batch.rollouts[i][0].cpu() if batch.rollouts else None, batch.key)
            alike[tuple(x.shape[1:])].append((e, x, observe(stack, x, batch.key)))
        errors: dict[str, list[Tensor]] = defaultdict(list)
        for members in alike.values():
            for name, error in self._errors(members, batch.key).items():
                errors[name].append(error)
        loss, metrics = self._sum({name: torch.cat(found) for name, found in errors.items()})
        if self.summary_weight:
            values = torch.cat([_summaries(stack) for stack in stacks])
            known, wanted = standardised(values.to(embeddings), self.mean, self.scale)
            error, explained, count = regression(self.summary(embeddings), known, wanted)
            loss = loss + self.summary_weight * error
            metrics |= {"r2_summaries": (explained, count)} if count else {}
        return loss, metrics

    def _sum(self, errors: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """Weighted sum of the means of errors (models,), NaN where a model has none; the means are the metrics."""
        loss, metrics = torch.zeros((), device=self.read.weight.device), Metrics()
        for name, error in errors.items():
            known = error.isfinite()
            mean = torch.where(known, error, 0.0).sum() / known.sum().clamp(min=1)
            loss = loss + self.weights[name] * mean
            metrics |= {name: (mean.detach(), int(known.sum()))} if known.any() else {}
        return loss, metrics

    def _inputs(self, stack: Stack, stored: Tensor | None, key: int) -> Tensor:
        """Inputs (models, sequences, time, input) to roll a stack out on: some of the stored ones, or drawn ones."""
        if stored is None or self.drawn_steps:
            x = draw_inputs(stack, self.sequences_per_model, self.drawn_steps, key)
        else:
            generator = torch.Generator().manual_seed(key)
            x = stored[:, self.choose(stored.shape[1], self.sequences_per_model, generator)]
        return share_suffix(x, round(self.shared_suffix * x.shape[2]))

    def _errors(self, members: Sequence[tuple[Tensor, Tensor, Behaviour]], key: int) -> Errors:
        """Errors (models,) by name, of members (embeddings, inputs, behaviour) whose inputs have one shape."""
        e, x = torch.cat([e for e, _, _ in members]), torch.cat([x for _, x, _ in members])
        times = _times(x.shape[1], x.shape[2], key)
        wanted = [_targets(seen, times) for _, _, seen in members]
        states, sizes, outputs = (torch.cat(side).to(e) for side in zip(*wanted, strict=True))
        g = self.emulate(e, x.to(e))[:, :, times.to(e.device)].flatten(1, 2)
        errors = {"geometry": distance(states, self._asked_of("geometry", g, e))}
        errors["size"] = squared_error(self.size(e), sizes[:, None])
        if self.weights["outputs"]:
            errors["outputs"] = distance(outputs, self._asked_of("outputs", g, e))
        if self.weights["kicks"]:
            left = torch.cat([responses(seen, KICK_STEPS) for _, _, seen in members]).to(e)
            root = torch.arange(1, KICK_STEPS + 1, device=e.device).sqrt()
            errors["kicks"] = squared_error(self.kicked(e), left / root)
        return errors

    def _asked_of(self, part: str, g: Tensor, e: Tensor) -> Tensor:
        """z (models, place, width / 4) of the emulator's states (models, place, width), as the embedding asks."""
        scale, shift = self.film[part](e)[:, None].chunk(2, 2)
        z: Tensor = self.write[part](g * (1 + scale) + shift)
        return z


def _targets(seen: Behaviour, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrix of states, log of its size, Gram matrix of outputs, at these times of every sequence."""

    def at_places(value: Tensor) -> Tensor:
        return value[:, times].transpose(1, 2).flatten(1, 2)

    states, sizes = gram_of_states({name: at_places(value) for name, value in seen.run.states.items()})
    outputs, spread = gram(at_places(seen.run.outputs))
    return states, sizes, torch.where(spread[:, None, None] > 0, outputs, torch.nan)


def _times(num_sequences: int, num_steps: int, key: int) -> Tensor:
    """Times at which all sequences are compared, drawn by the key of the batch, in order."""
    wanted = max(PLACES // num_sequences, 1)
    drawn = torch.randperm(num_steps, generator=torch.Generator().manual_seed(key))
    return drawn[:wanted].sort().values


def _summaries(stack: Stack) -> Tensor:
    """Invariant summaries and Markov norms (models, summary), NaN where a model has none."""
    return torch.cat([summaries_of(stack), markov_summaries_of(stack)], dim=1)
