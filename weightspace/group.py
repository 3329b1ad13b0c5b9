"""Elements of a symmetry group: permutations of axes and factors of gauges, for one model or a stack of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Charge = int | tuple[int, ...]
"""By which power of its factor a gauge moves something; by row where rows of a channel axis differ."""


@dataclass(frozen=True)
class GroupElement:
    """One element of the symmetry group, or a stack of them (each tensor then has a leading models axis).

    `permutations[axis]` (size,): new index i takes old index permutations[axis][i]. `gauges[name]` (size,): the factor
    of each unit, indexed as before the permutation.
    """

    permutations: dict[str, Tensor]
    gauges: dict[str, Tensor]

    def compose(self, first: GroupElement) -> GroupElement:
        """The element that acts as `first`, then as `self` (unstacked elements of one spec)."""
        permutations = {a: first.permutations[a][p] for a, p in self.permutations.items()}
        return GroupElement(permutations, {k: g * first.gauges[k] for k, g in self._pulled_back(first).items()})

    def _pulled_back(self, first: GroupElement) -> dict[str, Tensor]:
        inverse = {axis: torch.argsort(p) for axis, p in first.permutations.items()}
        return {k: g[inverse[k.partition("@")[2]]] for k, g in self.gauges.items()}

    def inverse(self) -> GroupElement:
        """The element that undoes this one (unstacked)."""
        permutations = {axis: torch.argsort(p) for axis, p in self.permutations.items()}
        gauges = {k: (1 / g)[self.permutations[k.partition("@")[2]]] for k, g in self.gauges.items()}
        return GroupElement(permutations, gauges)


def random_factors(kind: str, shape: tuple[int, int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Random factors (models, axis) of a gauge: fair signs, log-normal scales, or their product for "nonzero"."""
    sign = 1.0 - 2.0 * torch.randint(2, shape, generator=generator).to(dtype)
    scale = torch.exp(0.5 * torch.randn(shape, generator=generator, dtype=dtype))
    return {"sign": sign, "positive": scale, "nonzero": sign * scale}[kind]


def power(factor: Tensor, charge: int, kind: str) -> Tensor:
    """Factors (axis) of a gauge to an integer charge, of which only the parity counts for signs."""
    if kind == "sign":
        return factor if charge % 2 else torch.ones_like(factor)
    return factor**charge


def scaled(tensor: Tensor, dim: int, factor: Tensor, charge: Charge, kind: str) -> Tensor:
    """One tensor of a model, with one axis moved by factors (axis) to a charge."""
    if charge == 0:
        return tensor
    rows = charge if isinstance(charge, tuple) else (charge,)
    powers = torch.stack([power(factor, c, kind) for c in rows])
    shape = [1] * tensor.dim()
    shape[0] = len(rows) if isinstance(charge, tuple) else 1
    shape[dim] = factor.shape[0]
    return tensor * powers.to(tensor.dtype).reshape(shape)
