"""AdamW over a stack of models, each with its own learning rate, weight decay, clipping and quarantine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.native.engine.job import Moves
from weightspace.spec import Params, WeightSpec
from zoo_builder.learning.fused import FusedUpdates

LOWER_BOUNDS = {"real": -torch.inf, "even": -torch.inf, "positive": 1e-6, "at_least_1": 1.0}
"""Least value that a tensor of each domain keeps while it is trained."""


@dataclass(frozen=True)
class OptimiserState:
    """Params and moments of a stack of models: the trained tensors of a model lie side by side in one row."""

    row: Tensor
    """Trained params (models, parameters)."""
    first: Tensor
    """Running mean of the gradients (models, parameters)."""
    second: Tensor
    """Running mean of their squares (models, parameters)."""
    diverged_step: Tensor
    """Number of the first update that failed (models,), int64, -1 where none did."""
    learning: Tensor
    """Mask of the models that still learn (models,), bool: all but those that diverged or were stopped."""


@dataclass(frozen=True)
class StepConstants:
    """Constants of one update, float64 scalars on the device of the params."""

    number: Tensor
    """1 for the first update."""
    first: Tensor
    """Bias correction of the first moment, 1 - beta1^number."""
    second: Tensor
    """Bias correction of the root of the second moment, (1 - beta2^number)^-0.5."""
    rate: Tensor
    """Factor of the learning rates, a scalar or (models, 1)."""


@dataclass(frozen=True)
class Hyperparameters:
    """Each model's own settings of AdamW (models,), and those that all models share."""

    learning_rate: Tensor
    weight_decay: Tensor
    clip: Tensor
    """Largest norm of a gradient; 0 clips nothing."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


class StackedAdamW:
    """torch.optim.AdamW (Loshchilov and Hutter, Decoupled weight decay, ICLR 2019) for a stack of models.

    An update is a handful of operations however many tensors a family has, and no operation joins two rows. A model
    whose loss, gradient or new params are not finite is frozen: its params and moments stay what they were, from then
    on; so is one that is stopped. What differs between updates is in `state` and `step_constants()`: the rest may be
    captured with the first update.
    """

    def __init__(
        self, spec: WeightSpec, params: Params, hyperparameters: Hyperparameters, *, fused: bool = False
    ) -> None:
        """Start from stacked params (models, ...).

        With `fused` an update is one pass over memory in C, which changes the rows in place; for the CPU alone.
        """
        names = spec.trained
        self._shapes = {name: params[name].shape for name in names}
        self._sizes = [params[name][0].numel() for name in names]
        row = torch.cat([params[name].flatten(1) for name in names], dim=1)
        never = torch.full((len(row),), -1, dtype=torch.int64, device=row.device)
        self.state = OptimiserState(row, torch.zeros_like(row), torch.zeros_like(row), never, never < 0)
        # Views of rows that are changed in place are made once: between calls of C, each call of torch counts.
        self._moved_in_place = row if fused else None
        self._views = self._views_of(row) if fused else {}
        self._lower = _lower_bounds(spec, names, self._sizes, row)
        self._betas, self._epsilon = hyperparameters.betas, hyperparameters.epsilon
        self._updates, self._fused = 0, fused
        settings = (hyperparameters.learning_rate, hyperparameters.weight_decay, hyperparameters.clip)
        columns = (setting.to(row.device, torch.float64)[:, None] for setting in settings)
        self._learning_rate, self._weight_decay, self._clip = columns

    @property
    def is_fused(self) -> bool:
        """Whether updates are made in C, which changes the rows in place."""
        return self._fused

    @property
    def diverged_step(self) -> Tensor:
        """See `OptimiserState`."""
        return self.state.diverged_step

    def params(self, state: OptimiserState | None = None) -> Params:
        """The trained tensors (models, ...), views of the row of this optimiser or of another state."""
        row = (state or self.state).row
        if row is self._moved_in_place:
            return dict(self._views)
        return self._views_of(row)

    def _views_of(self, row: Tensor) -> Params:
        pieces = row.split(self._sizes, dim=1)
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def stop(self, models: Tensor) -> None:
        """Let some models (models,), bool, learn no more."""
        self.state = dataclasses.replace(self.state, learning=self.state.learning & ~models)

    def update(self, losses: Tensor, gradients: Mapping[str, Tensor], rate: Tensor | None = None) -> None:
        """Move every model by the gradients (models, ...) of its loss (models,); for `rate` see `step_constants`."""
        self.state = self.after(self.state, self.step_constants(rate), losses, gradients)

    def step_constants(self, rate: Tensor | None = None) -> StepConstants:
        """The constants of the next update, counted by calls; learning rates are multiplied by `rate` (models,)."""
        self._updates += 1
        beta1, beta2 = self._betas
        numbers = (self._updates, 1 - beta1**self._updates, (1 - beta2**self._updates) ** -0.5, 1.0)
        scalars, device = torch.tensor(numbers, dtype=torch.float64), self.state.row.device
        # Pinned memory: else the host would wait until the device is idle.
        on_device = scalars.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else scalars
        number, first, second, same = on_device.unbind()
        return StepConstants(number, first, second, same if rate is None else rate.to(device)[:, None])

    def after(
        self, state: OptimiserState, constants: StepConstants, losses: Tensor, gradients: Mapping[str, Tensor]
    ) -> OptimiserState:
        """State after an update by the gradients (models, ...) of each model's loss (models,)."""
        if self._fused:
            updates = self._fused_updates(state, [constants])
            updates.make(losses, [gradients[name] for name in self._shapes])
            return _with_failures(state, [constants], updates.failed)
        gradient = torch.cat([gradients[name].flatten(1) for name in self._shapes], dim=1)
        # The square of a large float32 gradient overflows; the norm must not.
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True, dtype=torch.float64)
        factor = torch.where(self._clip > 0, (self._clip / (norm + 1e-6)).clamp(max=1), 1)
        gradient.mul_(factor.to(gradient.dtype))
        first, second, row = self._moved(state, constants, gradient)
        fine = losses.isfinite() & norm[:, 0].isfinite() & row.isfinite().all(1) & second.isfinite().all(1)
        moves, fails = state.learning & fine, state.learning & ~fine
        diverged_step = torch.where(fails, constants.number.to(torch.int64), state.diverged_step)
        # Without a test whether any failed: that would hold up a GPU, and cannot be captured.
        first, second, row = (
            torch.where(moves[:, None], new, old)
            for new, old in ((first, state.first), (second, state.second), (row, state.row))
        )
        return OptimiserState(row, first, second, diverged_step, moves)

    def update_natively(self, rates: Sequence[Tensor | None], make: Callable[[Moves], Tensor]) -> Tensor:
        """Make an update in C for each of `rates` (see `step_constants`); returns the losses that `make` returns.

        For an optimiser that is `fused`. `make` gets the callback that moves, in place, each model that still learns.
        """
        steps = [self.step_constants(rate) for rate in rates]
        updates = self._fused_updates(self.state, steps)
        losses = make(updates.moves())
        self.state = _with_failures(self.state, steps, updates.failed)
        return losses

    def _fused_updates(self, state: OptimiserState, steps: Sequence[StepConstants]) -> FusedUpdates:
        rates = torch.stack([constants.rate.expand(len(state.row), 1)[:, 0] for constants in steps])
        numbers = {
            "rate": rates,
            "number_first": torch.stack([constants.first for constants in steps]),
            "root_second": torch.stack([constants.second for constants in steps]),
        }
        columns = {"learning_rate": self._learning_rate, "weight_decay": self._weight_decay, "clip": self._clip}
        constants = {"beta1": self._betas[0], "beta2": self._betas[1], "epsilon": self._epsilon}
        rows = (state.row, state.first, state.second)
        return FusedUpdates(rows, state.learning, self._sizes, self._lower, columns, numbers, constants)

    def _moved(
        self, state: OptimiserState, constants: StepConstants, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moments and params after one update by clipped gradients (models, parameters)."""
        beta1, beta2 = self._betas
        dtype = state.row.dtype
        first = state.first.lerp(gradient, 1 - beta1)
        second = (state.second * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = self._learning_rate * constants.rate
        size = (rate / constants.first).to(dtype)
        spread = second.sqrt().mul_(constants.second).add_(self._epsilon)
        kept = (1 - rate * self._weight_decay).to(dtype)
        row = (state.row * kept).sub_((first / spread).mul_(size))
        if self._lower is not None:
            row = torch.maximum(row, self._lower)
        return first, second, row


def _with_failures(state: OptimiserState, steps: Sequence[StepConstants], failed: Tensor) -> OptimiserState:
    """Record the models whose in-place update `failed` (models,): its number among these, -1 where none did."""
    fails = failed >= 0
    if not bool(fails.any()):
        return state
    diverged_step = torch.where(fails, steps[0].number.to(torch.int64) + failed, state.diverged_step)
    return dataclasses.replace(state, diverged_step=diverged_step, learning=state.learning & ~fails)


def _lower_bounds(spec: WeightSpec, names: Sequence[str], sizes: Sequence[int], like: Tensor) -> Tensor | None:
    """Least allowed value of each parameter (parameters,), None where all are real."""
    if all(spec.tensors[name].domain == "real" for name in names):
        return None
    least = (LOWER_BOUNDS[spec.tensors[name].domain] for name in names)
    return torch.cat([like.new_full((size,), bound) for size, bound in zip(sizes, least, strict=True)])
