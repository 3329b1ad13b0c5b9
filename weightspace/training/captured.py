"""An encoder whose passes over a stack are CUDA graphs in training: two launches in place of thousands."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from weightspace.encoders.base import Encoder
from weightspace.rollout.captured import copy_of, load, on_cuda, recorded, warm_up
from weightspace.store import Stack

logger = logging.getLogger(__name__)

SIGHTINGS = 3
"""Stacks of one form before it is captured: what an epoch's end leaves over is not worth a graph."""
MAX_GRAPHS = 128
"""Forms that are captured: each keeps its activations in memory."""


class CapturedEncoder(Encoder):
    """Embeds like an encoder; on CUDA, forms of stacks that come again are captured, forward and backward.

    A form is the family at its size, the number of models, the mode, and how many stacks of the form came before in
    the step: a graph's activations must last until its backward pass, and `begin_step` says that they may be
    overwritten. A form that does not fit a graph (operations that wait for the host, no memory) ends capturing, with
    one warning. Automatic mixed precision is not captured: it keeps copies of weights that a graph would not renew.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.embedding_dim)
        # In a list, so that the encoder's parameters are those of one module alone.
        self._encoder = [encoder]
        self.symmetry, self.max_sizes = encoder.symmetry, encoder.max_sizes  # type: ignore[misc]
        self._passes: dict[Hashable, _Passes] = {}
        self._sightings: Counter[Hashable] = Counter()
        self._in_step: Counter[Hashable] = Counter()
        self._usable = True

    @property
    def encoder(self) -> Encoder:
        """The encoder whose passes are captured."""
        return self._encoder[0]

    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Standardisation of the encoder."""
        self.encoder.fit_standardisation(stacks)

    def begin_step(self) -> None:
        """Declare that no backward pass of earlier calls is still to come."""
        self._in_step.clear()

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of all models of the stacks, one stack after another."""
        ready = self._usable and torch.is_grad_enabled() and not torch.is_autocast_enabled("cuda")
        if not (ready and all(on_cuda(list(stack.params.values())) for stack in stacks)):
            embeddings: Tensor = self.encoder(stacks)
            return embeddings
        return torch.cat([self._embedded(stack) for stack in stacks])

    def _embedded(self, stack: Stack) -> Tensor:
        passes = self._passes_of(stack)
        if passes is None:
            embeddings: Tensor = self.encoder([stack])
            return embeddings
        params = list(stack.params.values())
        replayed: Tensor = _Replayed.apply(passes, params, *passes.weights)  # type: ignore[no-untyped-call]
        return replayed

    def _passes_of(self, stack: Stack) -> _Passes | None:
        """The graphs for a stack, captured where its form has come often enough; None without."""
        form = (stack.family, stack.io, len(stack), next(iter(stack.params.values())).dtype, self.encoder.training)
        key = (form, self._in_step[form])
        self._in_step[form] += 1
        self._sightings[key] += 1
        if key in self._passes or not self._usable:
            return self._passes.get(key)
        if self._sightings[key] < SIGHTINGS or len(self._passes) >= MAX_GRAPHS:
            return None
        try:
            self._passes[key] = _Passes(self.encoder, stack)
        except RuntimeError as error:
            self._usable = False
            reason = str(error).split("\n")[0]
            logger.warning("The encoder could not be captured as a CUDA graph (%s); going on without.", reason)
        return self._passes.get(key)


class _Passes:
    """Graphs of an encoder's forward and backward pass over stacks of one form, and the memory they read and write."""

    def __init__(self, encoder: Encoder, stack: Stack) -> None:
        trained = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
        self.weights = list(trained.values())
        # The same memory as other leaves: those of the optimiser are tied to the stream of the steps before.
        aliases = {name: weight.detach().requires_grad_() for name, weight in trained.items()}
        self._aliases = list(aliases.values())
        params = {name: copy_of(tensor) for name, tensor in stack.params.items()}
        self._params = list(params.values())
        copied = replace(stack, params=params, rows=copy_of(stack.rows))
        shape = (len(stack), encoder.embedding_dim)
        self._gradient = torch.zeros(shape, dtype=self.weights[0].dtype, device=self._params[0].device)
        self._used: list[bool] = []

        def embeddings() -> Tensor:
            found: Tensor = functional_call(encoder, aliases, ([copied],))
            return found

        warm_up(lambda: self._gradients(embeddings()), self._gradient.device)
        self._forward, embedded = recorded(embeddings)
        self._backward, self._flat = recorded(lambda: self._gradients(embedded), self._forward.pool())
        self._embeddings = embedded.detach()
        self._calls = 0

    def _gradients(self, embeddings: Tensor) -> Tensor:
        """Gradients of the weights in use, one after another: one tensor, so that one copy gets them out of a graph."""
        found = torch.autograd.grad(embeddings, self._aliases, self._gradient, allow_unused=True)
        self._used = [gradient is not None for gradient in found]
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])

    def forward(self, params: list[Tensor]) -> tuple[Tensor, int]:
        """Embeddings (models, embedding_dim) and the number of the call, which `backward` asks for."""
        load(self._params, params)
        self._forward.replay()
        self._calls += 1
        return self._embeddings.clone(), self._calls

    def backward(self, gradient: Tensor, call: int) -> list[Tensor | None]:
        """Gradients of the weights from that of the embeddings, of the latest call alone; None of unused weights."""
        if call != self._calls:
            raise RuntimeError("The activations of this pass are overwritten; call `begin_step` between steps alone.")
        load([self._gradient], [gradient])
        self._backward.replay()
        used = [weight for weight, is_used in zip(self.weights, self._used, strict=True) if is_used]
        parts = iter(self._flat.clone().split([weight.numel() for weight in used]))
        return [
            next(parts).view_as(weight) if is_used else None
            for weight, is_used in zip(self.weights, self._used, strict=True)
        ]


class _Replayed(torch.autograd.Function):
    """Embeddings by replayed graphs, as a function of the encoder's weights."""

    @staticmethod
    def forward(ctx: Any, passes: _Passes, params: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.passes = passes
        embeddings, ctx.call = passes.forward(params)
        return embeddings

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.passes.backward(gradient, ctx.call))
