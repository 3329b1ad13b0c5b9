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

LOWER_BOUNDS = {"real": -torch.inf, "positive": 1e-6, "at_least_1": 1.0}
"""Least value that a tensor of each domain keeps while it is trained."""


@dataclass(frozen=True)
class Standing:
    """Where a stack of models stands: the trained tensors of a model lie side by side in one row."""

    row: Tensor
    """Trained params (models, parameters)."""
    first: Tensor
    """Running mean of the gradients (models, parameters)."""
    second: Tensor
    """Running mean of their squares (models, parameters)."""
    diverged_step: Tensor
    """Number of the first update a model could not make (models,), int64, -1 if it made them all."""
    learning: Tensor
    """Which models still learn (models,), bool: all but those that diverged or were stopped."""


@dataclass(frozen=True)
class Due:
    """The numbers of one update in float64, where the params are; scalars where nothing else is said."""

    number: Tensor
    """1 for the first update."""
    first: Tensor
    """1 - beta1^number, by which the first moment falls short."""
    second: Tensor
    """(1 - beta2^number)^-0.5, by which the root of the second moment falls short."""
    rate: Tensor
    """By what the learning rates are multiplied, a scalar or (models, 1)."""


class StackedAdamW:
    """torch.optim.AdamW (Loshchilov and Hutter, Decoupled weight decay, ICLR 2019) for a stack of models.

    An update is a handful of operations however many tensors a family has, and no operation joins two rows. A model
    whose loss, gradient or new params are not finite is frozen: its params and moments stay what they were, from then
    on; so is one that is stopped. What differs between updates is in `standing` and `due()`: the rest may be captured
    with the first update.
    """

    def __init__(
        self,
        spec: WeightSpec,
        params: Params,
        learning_rate: Tensor,
        weight_decay: Tensor,
        clip: Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        *,
        fused: bool = False,
    ) -> None:
        """Start from stacked params (models, ...), with one learning rate, decay and clip (0: none) per model.

        With `fused` an update is one pass over memory in C, which changes the rows in place; for the CPU alone.
        """
        names = spec.trained
        self._shapes = {name: params[name].shape for name in names}
        self._sizes = [params[name][0].numel() for name in names]
        row = torch.cat([params[name].flatten(1) for name in names], dim=1)
        never = torch.full((len(row),), -1, dtype=torch.int64, device=row.device)
        self.standing = Standing(row, torch.zeros_like(row), torch.zeros_like(row), never, never < 0)
        # Rows that stay where they are, so their views are made once: between calls of C, each call of torch counts.
        self._moved_in_place = row if fused else None
        self._views = self._views_of(row) if fused else {}
        self._lower = _lower_bounds(spec, names, self._sizes, row)
        self._betas, self._epsilon, self._updates, self._fused = betas, epsilon, 0, fused
        settings = (learning_rate, weight_decay, clip)
        columns = (setting.to(row.device, torch.float64)[:, None] for setting in settings)
        self._learning_rate, self._weight_decay, self._clip = columns

    @property
    def diverged_step(self) -> Tensor:
        """See `Standing`."""
        return self.standing.diverged_step

    def params(self, standing: Standing | None = None) -> Params:
        """The trained tensors (models, ...), views of the row of this optimiser or of another standing."""
        row = (standing or self.standing).row
        if row is self._moved_in_place:
            return dict(self._views)
        return self._views_of(row)

    def _views_of(self, row: Tensor) -> Params:
        pieces = row.split(self._sizes, dim=1)
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def stop(self, models: Tensor) -> None:
        """Let some models (models,), bool, learn no more."""
        self.standing = dataclasses.replace(self.standing, learning=self.standing.learning & ~models)

    def update(self, losses: Tensor, gradients: Mapping[str, Tensor], rate: Tensor | None = None) -> None:
        """Move every model by the gradients (models, ...) of its own loss (models,); for `rate` see `due`."""
        self.standing = self.after(self.standing, self.due(rate), losses, gradients)

    def due(self, rate: Tensor | None = None) -> Due:
        """The numbers of the next update, counted by calls; learning rates are multiplied by `rate` (models,)."""
        self._updates += 1
        beta1, beta2 = self._betas
        numbers = (self._updates, 1 - beta1**self._updates, (1 - beta2**self._updates) ** -0.5, 1.0)
        scalars, device = torch.tensor(numbers, dtype=torch.float64), self.standing.row.device
        # From pinned memory, or the host would wait until the device has nothing left to do.
        on_device = scalars.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else scalars
        number, first, second, same = on_device.unbind()
        return Due(number, first, second, same if rate is None else rate.to(device)[:, None])

    def after(self, standing: Standing, due: Due, losses: Tensor, gradients: Mapping[str, Tensor]) -> Standing:
        """Where the models stand after an update, by the gradients (models, ...) of each one's loss (models,)."""
        if self._fused:
            updates = self._fused_updates(standing, [due])
            updates.make(losses, [gradients[name] for name in self._shapes])
            return _heeded(standing, [due], updates.failed)
        gradient = torch.cat([gradients[name].flatten(1) for name in self._shapes], dim=1)
        # The square of a large float32 gradient overflows; the norm must not.
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True, dtype=torch.float64)
        factor = torch.where(self._clip > 0, (self._clip / (norm + 1e-6)).clamp(max=1), 1)
        gradient.mul_(factor.to(gradient.dtype))
        first, second, row = self._moved(standing, due, gradient)
        fine = losses.isfinite() & norm[:, 0].isfinite() & row.isfinite().all(1) & second.isfinite().all(1)
        moves, fails = standing.learning & fine, standing.learning & ~fine
        diverged_step = torch.where(fails, due.number.to(torch.int64), standing.diverged_step)
        # Always, because to ask whether it is needed would hold up a GPU, and cannot be captured.
        first, second, row = (
            torch.where(moves[:, None], new, old)
            for new, old in ((first, standing.first), (second, standing.second), (row, standing.row))
        )
        return Standing(row, first, second, diverged_step, moves)

    def in_c(self, rates: Sequence[Tensor | None], make: Callable[[Moves], Tensor]) -> Tensor:
        """Make updates in C, one for each of `rates` (see `due`), by what `make` does with them; returns its losses.

        For an optimiser that is `fused`. What `make` is given moves each model that learns by its gradients, in place.
        """
        dues = [self.due(rate) for rate in rates]
        updates = self._fused_updates(self.standing, dues)
        losses = make(updates.moves())
        self.standing = _heeded(self.standing, dues, updates.failed)
        return losses

    def _fused_updates(self, standing: Standing, dues: Sequence[Due]) -> FusedUpdates:
        rates = torch.stack([due.rate.expand(len(standing.row), 1)[:, 0] for due in dues])
        numbers = {
            "rate": rates,
            "number_first": torch.stack([due.first for due in dues]),
            "root_second": torch.stack([due.second for due in dues]),
        }
        columns = {"learning_rate": self._learning_rate, "weight_decay": self._weight_decay, "clip": self._clip}
        constants = {"beta1": self._betas[0], "beta2": self._betas[1], "epsilon": self._epsilon}
        rows = (standing.row, standing.first, standing.second)
        return FusedUpdates(rows, standing.learning, self._sizes, self._lower, columns, numbers, constants)

    def _moved(self, standing: Standing, due: Due, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moments and params after one update by clipped gradients (models, parameters)."""
        beta1, beta2 = self._betas
        dtype = standing.row.dtype
        first = standing.first.lerp(gradient, 1 - beta1)
        second = (standing.second * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = self._learning_rate * due.rate
        size = (rate / due.first).to(dtype)
        spread = second.sqrt().mul_(due.second).add_(self._epsilon)
        kept = (1 - rate * self._weight_decay).to(dtype)
        row = (standing.row * kept).sub_((first / spread).mul_(size))
        if self._lower is not None:
            row = torch.maximum(row, self._lower)
        return first, second, row


def _heeded(standing: Standing, dues: Sequence[Due], failed: Tensor) -> Standing:
    """Where models stand whose rows were moved in place by updates, of which some could not make one (models,)."""
    fails = failed >= 0
    if not bool(fails.any()):
        return standing
    diverged_step = torch.where(fails, dues[0].number.to(torch.int64) + failed, standing.diverged_step)
    return dataclasses.replace(standing, diverged_step=diverged_step, learning=standing.learning & ~fails)


def _lower_bounds(spec: WeightSpec, names: Sequence[str], sizes: Sequence[int], like: Tensor) -> Tensor | None:
    """Least allowed value of each parameter (parameters,), None where all are real."""
    if all(spec.tensors[name].domain == "real" for name in names):
        return None
    least = (LOWER_BOUNDS[spec.tensors[name].domain] for name in names)
    return torch.cat([like.new_full((size,), bound) for size, bound in zip(sizes, least, strict=True)])
