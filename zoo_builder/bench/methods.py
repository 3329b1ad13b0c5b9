"""Methods of training that are compared: each makes the same updates of the same models."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method as Rollout
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.rollout.native import can_descend_on, descend_on
from weightspace.spec import Params
from zoo_builder.bench.case import LEARNING_RATE, WEIGHT_DECAY, Case, Data
from zoo_builder.learning.batches import UPDATES_PER_DRAW
from zoo_builder.learning.optimiser import Hyperparameters, StackedAdamW
from zoo_builder.stacks import STACK


class Method(ABC):
    """Method of training many models.

    An update is: outputs of every model on its own inputs, cross-entropy at every step, gradients, AdamW.
    """

    passing_gradients: int = 0
    """Number of models whose gradients exist together within `update`."""
    together: int = 1
    """Updates made at once: `count` should be a multiple of this."""

    def update(self, count: int = 1) -> Tensor:
        """Make `count` updates of every model; returns the losses (models,) before the last one."""
        for _ in range(count - 1):
            self.update_once()
        return self.update_once()

    @abstractmethod
    def update_once(self) -> Tensor:
        """Make one update of every model; returns the losses (models,) before it."""

    @abstractmethod
    def params(self) -> Params:
        """Present values of the trained tensors (models, ...)."""

    @staticmethod
    def why_not(case: Case) -> str | None:
        """Reason why this method cannot train a case, None if it can."""
        return None


class Stacked(Method):
    """The method of `zoo-builder build --method torch`: the cell mapped over a stack of models, with autograd."""

    rollout: ClassVar[Rollout] = "stacked"
    fused: ClassVar[bool] = False
    """Whether the optimiser is the one in C."""

    def __init__(self, case: Case, data: Data) -> None:
        self._family, self._parts = case.load(), []
        spec = self._family.spec
        self.passing_gradients = min(STACK, case.models)
        for first in range(0, case.models, STACK):
            own = data.narrow(first, STACK)
            settings = (LEARNING_RATE, WEIGHT_DECAY, 0.0)
            rate, decay, clip = (torch.full((len(own.x),), number, dtype=torch.float64) for number in settings)
            hyperparameters = Hyperparameters(rate, decay, clip)
            optimiser = StackedAdamW(spec, own.params, hyperparameters, fused=self.fused)
            fixed = {name: tensor.clone() for name, tensor in own.params.items() if name not in spec.trained}
            weight = torch.full((len(own.x), case.steps), 1 / case.steps)
            criterion = Criterion("cross_entropy", own.target[..., None], weight, self._family.output_size)
            # The params that the optimiser has copied are not kept.
            self._parts.append((optimiser, fixed, Data({}, own.x, own.start, own.noise, own.target), criterion))

    def update_once(self) -> Tensor:
        losses = []
        for optimiser, fixed, data, criterion in self._parts:
            own, gradients = self.gradients({**fixed, **optimiser.params()}, data, criterion)
            optimiser.update(own, gradients)
            losses.append(own)
        return torch.cat(losses)

    def gradients(self, params: Params, data: Data, criterion: Criterion) -> tuple[Tensor, Params]:
        """Losses (models,) of one stack, and gradients (models, ...) of the trained tensors."""
        trained = self._family.spec.trained
        arguments = (self._family, params, trained, data.x, data.start, criterion)
        return losses_and_gradients(*arguments, method=self.rollout, noise=data.noise)

    def params(self) -> Params:
        parts = [optimiser.params() for optimiser, *_ in self._parts]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class Native(Stacked):
    """The method of `zoo-builder build --method native`: the traced cell, its gradients, the loss and AdamW in C.

    The updates that a build makes of one draw of data are made in one call of C, where the family allows it; each has
    sequences of its own in memory, which here are copies of the same ones.
    """

    rollout: ClassVar = "native"
    fused: ClassVar = True

    def __init__(self, case: Case, data: Data) -> None:
        super().__init__(case, data)
        self._batch = case.batch
        if can_descend_on(self._family) and not self._family.spec.noise:
            self.together, self.passing_gradients = UPDATES_PER_DRAW, 0
            self._parts = [(*part[:2], *_repeated(*part[2:], self.together)) for part in self._parts]

    def update(self, count: int = 1) -> Tensor:
        if self.together == 1:
            return super().update(count)
        losses = [self._moved(part, count) for part in self._parts]
        return torch.cat(losses)

    def _moved(self, part: tuple[StackedAdamW, Params, Data, Criterion], count: int) -> Tensor:
        """Make updates of the models of one stack; returns their losses (models,) before the last one."""
        optimiser, fixed, data, criterion = part
        params, trained = {**fixed, **optimiser.params()}, self._family.spec.trained
        for first in range(0, count, self.together):
            now = min(self.together, count - first)
            x, start = data.x[:, :, : now * self._batch], data.start[:, : now * self._batch]
            asked = dataclasses.replace(criterion, target=criterion.target[:, :, : now * self._batch])
            weights = criterion.weight.expand(now, *criterion.weight.shape)
            make = partial(descend_on, self._family, params, trained, x, start, asked, weights, {})
            losses = optimiser.update_natively([None] * now, make)
        return losses

    @staticmethod
    def why_not(case: Case) -> str | None:
        from weightspace.rollout.native import why_not

        return why_not(case.load())


class Vmap(Stacked):
    """torch.func.vmap(grad) of a plain loop over time, with the optimiser of `Stacked`."""

    def gradients(self, params: Params, data: Data, criterion: Criterion) -> tuple[Tensor, Params]:
        family = self._family
        trained = {name: params[name] for name in family.spec.trained}
        fixed = {name: tensor for name, tensor in params.items() if name not in trained}

        def loss(own: Params, rest: Params, x: Tensor, start: Tensor, noise: Params, target: Tensor) -> Tensor:
            return _mean_nats(_unrolled(family, {**rest, **own}, x, start, noise), target)

        mapped = torch.func.vmap(torch.func.grad_and_value(loss))
        gradients, losses = mapped(trained, fixed, data.x, data.start, data.noise, data.target)
        return losses, gradients


class Loop(Method):
    """The usual loop over models: for each its module of torch.nn, its loss, its own torch.optim.AdamW.

    A family that no module of torch.nn computes is run step by step in Python.
    """

    def __init__(self, case: Case, data: Data) -> None:
        self._family, self._data, self._models = case.load(), data, []
        make = self._as_module if hasattr(self._family, "to_torch") else self._as_cell
        self._make = make
        for model in range(case.models):
            parameters, outputs = make({name: tensor[model].clone() for name, tensor in data.params.items()}, model)
            optimiser = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            self._models.append((parameters, outputs, optimiser))
        self._data = Data({}, data.x, data.start, data.noise, data.target)

    def _as_module(self, params: Params, model: int) -> tuple[dict[str, Tensor], Callable[[], Tensor]]:
        layer, readout = self._family.to_torch(params)  # type: ignore[attr-defined]

        def outputs() -> Tensor:
            values: Tensor = readout(layer(self._data.x[model])[0])
            return values

        parameters = {**dict(layer.named_parameters()), **{f"readout.{k}": v for k, v in readout.named_parameters()}}
        return parameters, outputs

    def _as_cell(self, params: Params, model: int) -> tuple[dict[str, Tensor], Callable[[], Tensor]]:
        parameters = {name: params[name].requires_grad_() for name in self._family.spec.trained}

        def outputs() -> Tensor:
            noise = {name: tensor[model] for name, tensor in self._data.noise.items()}
            return _unrolled(self._family, params, self._data.x[model], self._data.start[model], noise)

        return parameters, outputs

    def update_once(self) -> Tensor:
        losses = []
        for model, (_, outputs, optimiser) in enumerate(self._models):
            optimiser.zero_grad()
            loss = _mean_nats(outputs(), self._data.target[model])
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def params(self) -> Params:
        own = [parameters for parameters, *_ in self._models]
        return {name: torch.stack([one[name].detach() for one in own]) for name in own[0]}


def _repeated(data: Data, criterion: Criterion, count: int) -> tuple[Data, Criterion]:
    """Copies of the same sequences side by side, for several updates."""
    x, target = data.x.repeat(1, 1, count, 1), data.target.repeat(1, 1, count)
    repeated = dataclasses.replace(criterion, target=target[..., None])
    return Data({}, x, data.start.repeat(1, count, 1), data.noise, target), repeated


def _unrolled(family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
    """Outputs (time, batch, output) of one model on inputs (time, batch, input), one step after another."""
    state, outputs = family.initial_state(params, start), []
    for t in range(len(x)):
        state = family.step(params, state, x[t], {name: tensor[t] for name, tensor in noise.items()})
        outputs.append(family.readout(params, state))
    return torch.stack(outputs)


def _mean_nats(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of one model's outputs (time, batch, output), its mean over steps and sequences."""
    return F.cross_entropy(outputs.flatten(0, 1), target.flatten())
