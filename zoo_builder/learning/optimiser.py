"""AdamW over a stack of models, each with its own learning rate, weight decay, clipping and quarantine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightspace.spec import Params, WeightSpec

LOWER_BOUNDS = {"real": -torch.inf, "positive": 1e-6, "at_least_1": 1.0}
"""Least value that a tensor of each domain keeps while it is trained."""


class StackedAdamW:
    """torch.optim.AdamW (Loshchilov and Hutter, Decoupled weight decay, ICLR 2019) for a stack of models.

    The trained tensors of a model lie side by side in one row, so that an update is a handful of operations however
    many tensors a family has, and no operation joins two rows. A model whose loss, gradient or new params are not
    finite is frozen: its params and moments stay what they were, from then on.
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
    ) -> None:
        """Start from stacked params (models, ...), with one learning rate, decay and clip (0: none) per model."""
        names = spec.trained
        self._shapes = {name: params[name].shape for name in names}
        self._sizes = [params[name][0].numel() for name in names]
        self.row = torch.cat([params[name].flatten(1) for name in names], dim=1)
        self._first, self._second = torch.zeros_like(self.row), torch.zeros_like(self.row)
        self._lower = _lower_bounds(spec, names, self._sizes, self.row)
        self._betas, self._epsilon, self._updates = betas, epsilon, 0
        settings = (learning_rate, weight_decay, clip)
        columns = (setting.to(self.row.device, torch.float64)[:, None] for setting in settings)
        self._learning_rate, self._weight_decay, self._clip = columns
        self.diverged_step = torch.full((len(self.row),), -1, dtype=torch.int64, device=self.row.device)

    def params(self) -> Params:
        """The trained tensors (models, ...), views of this optimiser's memory."""
        pieces = self.row.split(self._sizes, dim=1)
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def update(self, losses: Tensor, gradients: Mapping[str, Tensor]) -> None:
        """Move every model by the gradients (models, ...) of its own loss (models,)."""
        self._updates += 1
        gradient = torch.cat([gradients[name].flatten(1) for name in self._shapes], dim=1)
        # The square of a large float32 gradient overflows; the norm must not.
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True, dtype=torch.float64)
        factor = torch.where(self._clip > 0, (self._clip / (norm + 1e-6)).clamp(max=1), 1)
        gradient.mul_(factor.to(gradient.dtype))
        first, second, row = self._moved(gradient)
        fine = losses.isfinite() & norm[:, 0].isfinite() & row.isfinite().all(1) & second.isfinite().all(1)
        moves = fine & (self.diverged_step < 0)
        self.diverged_step.masked_fill_(~fine & (self.diverged_step < 0), self._updates)
        # On CUDA asking would cost more than the answer saves.
        if moves.is_cuda or not bool(moves.all()):
            first, second, row = (
                torch.where(moves[:, None], new, old)
                for new, old in ((first, self._first), (second, self._second), (row, self.row))
            )
        self._first, self._second, self.row = first, second, row

    def _moved(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moments and params after one update by clipped gradients (models, parameters)."""
        beta1, beta2 = self._betas
        dtype = self.row.dtype
        first = self._first.lerp(gradient, 1 - beta1)
        second = (self._second * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = (self._learning_rate / (1 - beta1**self._updates)).to(dtype)
        spread = second.sqrt().mul_((1 - beta2**self._updates) ** -0.5).add_(self._epsilon)
        kept = (1 - self._learning_rate * self._weight_decay).to(dtype)
        row = (self.row * kept).sub_((first / spread).mul_(size))
        if self._lower is not None:
            row = torch.maximum(row, self._lower)
        return first, second, row


def _lower_bounds(spec: WeightSpec, names: Sequence[str], sizes: Sequence[int], like: Tensor) -> Tensor | None:
    """Least allowed value of each parameter (parameters,), None where all are real."""
    if all(spec.tensors[name].domain == "real" for name in names):
        return None
    least = (LOWER_BOUNDS[spec.tensors[name].domain] for name in names)
    return torch.cat([like.new_full((size,), bound) for size, bound in zip(sizes, least, strict=True)])
