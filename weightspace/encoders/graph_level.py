"""Numbers of a whole model that enter an encoder beside its pooled states: standardised columns and summaries."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS, NONLINEARITIES
from weightspace.graph import Layout
from weightspace.store import Stack
from weightspace.summaries import NUM_SUMMARIES, summaries_of

NUM_DECLARED = len(NODE_KINDS) + len(NONLINEARITIES) + 1
CONSTANT = 1e-5
"""A column whose deviation is below this share of its size is constant: what is left is rounding."""


class Fitted(nn.Module, ABC):
    """Base of parts of an encoder that learn fixed numbers from the training models, kept as buffers."""

    @abstractmethod
    def add(self, stack: Stack) -> None:
        """Take training models into account."""

    @abstractmethod
    def settle(self) -> None:
        """Set the buffers from all that was added, if anything was."""


class Standardised(nn.Module):
    """Columns in groups that are present together, standardised over the training models, and a flag per group.

    A value v becomes asinh((v - mean) / deviation): the tails of weights that blew up enter as logarithms. Groups that
    a model does not have are NaN, and become 0 with the flag 0; the flag is 1 where there are values.

    Shapes: (models, group, column) -> (models, group * column + group).
    """

    def __init__(self, groups: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(groups, columns))
        self.register_buffer("scale", torch.ones(groups, columns))
        self.width = groups * (columns + 1)
        self._sums: Tensor | None = None

    mean: Tensor
    scale: Tensor

    def add(self, values: Tensor) -> None:
        """Take values (models, group, column) of training models into account."""
        known = ~values.isnan()
        x = values.double().nan_to_num(0.0)
        sums = torch.stack([known.sum(0).double(), x.sum(0), x.square().sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums

    def settle(self) -> None:
        """Set means and deviations from all that was added, if anything was; 0 and 1 where nothing was present."""
        if self._sums is None:
            return
        count, total, square = self._sums
        self._sums = None
        count = count.clamp(min=1)
        mean = total / count
        deviation = (square / count - mean.square()).clamp(min=0).sqrt()
        constant = deviation <= CONSTANT * (square / count).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, 1.0, deviation))

    def forward(self, values: Tensor) -> Tensor:
        """Standardised values, then flags (models, group * column + group), in the dtype of the module."""
        present = ~values.isnan().any(-1)
        scaled = torch.asinh((values - self.mean) / self.scale).nan_to_num(0.0)
        return torch.cat([scaled.flatten(1), present.to(scaled.dtype)], dim=1).to(self.mean.dtype)


class Summaries(Fitted):
    """The invariant summaries of a model (`summaries_of`), standardised: for the head of any encoder.

    Shapes: a stack -> (models, width).
    """

    def __init__(self) -> None:
        super().__init__()
        self.columns = Standardised(NUM_SUMMARIES, 1)
        self.width = self.columns.width

    def add(self, stack: Stack) -> None:
        """Take training models into account."""
        self.columns.add(summaries_of(stack)[:, :, None])

    def settle(self) -> None:
        """Set means and deviations from all that was added."""
        self.columns.settle()

    def forward(self, stack: Stack) -> Tensor:
        """Standardised summaries and flags (models, width); no gradient passes through them."""
        values: Tensor = self.columns(summaries_of(stack)[:, :, None])
        return values


def declared_of(where: Layout) -> Tensor:
    """Sizes that the declaration alone fixes (declared,): log(1 + nodes) by kind and by nonlinearity, and layers."""
    kinds = torch.bincount(where.kind, minlength=len(NODE_KINDS))
    nonlinearities = torch.bincount(where.nonlinearity, minlength=len(NONLINEARITIES))
    return torch.cat([torch.log1p(torch.cat([kinds, nonlinearities]).double()), 1.0 + where.layer.max()[None]])
