"""Elements of a symmetry group (permutations of axes, factors of gauges) and their action on tensors and states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.declaration import Axis, Charge, Gauge, TensorSpec


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


def scaled(tensor: Tensor, dim: int, factor: Tensor, charge: Charge, kind: str, num_axes: int) -> Tensor:
    """A tensor (..., its axes) with one axis, `dim` from the end, moved by factors (..., axis) to a charge.

    A tuple has a charge for each row of the first of the `num_axes` axes.
    """
    if charge == 0:
        return tensor
    rows = charge if isinstance(charge, tuple) else (charge,)
    powers = torch.stack([power(factor, c, kind) for c in rows], dim=-2).to(tensor.dtype)
    shape = [1] * num_axes
    shape[0] = len(rows)
    shape[dim] = factor.shape[-1]
    return tensor * powers.reshape(*factor.shape[:-1], *shape)


def random_elements(
    axes: Mapping[str, Axis],
    gauges: Mapping[str, Gauge],
    num_models: int,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> GroupElement:
    """A stack of random elements: a permutation of every permutable axis, factors of every gauge, for each model."""
    permutations = {
        name: torch.rand(num_models, axis.size, generator=generator).argsort(dim=1)
        for name, axis in axes.items()
        if axis.permutable
    }
    factors = {}
    for name, gauge in gauges.items():
        shape = (num_models, axes[gauge.axis].size)
        factors[f"{name}@{gauge.axis}"] = random_factors(gauge.kind, shape, generator, dtype)
    return GroupElement(permutations, factors)


def random_tensor(
    tensor: TensorSpec, shape: tuple[int, ...], scale: float, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Random values of one tensor inside its domain; of a mask, 1 with probability 0.7."""
    value = torch.randn(shape, generator=generator, dtype=dtype) * scale
    if tensor.role == "mask":
        return (torch.rand(shape, generator=generator, dtype=dtype) < 0.7).to(dtype)
    if tensor.domain == "positive":
        return value.abs() + 0.1
    return 1.1 + value.abs() if tensor.domain == "at_least_1" else value


def act_on_tensor(
    gauges: Mapping[str, Gauge], element: GroupElement, name: str, axes: tuple[str, ...], tensor: Tensor
) -> Tensor:
    """A tensor (..., axes) moved by an element (tensors (..., axis)): first by factors, then by permutations."""
    for gauge_name, gauge in gauges.items():
        charges = gauge.charges.get(name)
        if charges is not None:
            factor = element.gauges[f"{gauge_name}@{gauge.axis}"]
            for dim, charge in enumerate(charges, start=-len(axes)):
                tensor = scaled(tensor, dim, factor, charge, gauge.kind, len(axes))
    for dim, axis in enumerate(axes, start=-len(axes)):
        if axis in element.permutations:
            tensor = _permuted(tensor, dim, element.permutations[axis])
    return tensor


def _permuted(tensor: Tensor, dim: int, order: Tensor) -> Tensor:
    """A tensor with one axis, `dim` from the end, in the order (size,), or in one (models, size) for each model."""
    if order.dim() == 1:
        return tensor.index_select(dim, order)
    index = order.reshape(len(order), *[1] * (tensor.dim() + dim - 1), -1, *[1] * (-dim - 1))
    return tensor.take_along_dim(index, dim)


def act_on_state(
    gauges: Mapping[str, Gauge], element: GroupElement, name: str, axes: Mapping[str, int], state: Tensor
) -> Tensor:
    """One state (..., state) moved by one element along each of its axes (name -> size)."""
    state = state.unflatten(-1, tuple(axes.values()))
    for dim, axis in enumerate(axes, start=-len(axes)):
        for gauge_name, gauge in gauges.items():
            charge = gauge.state_charges.get(name, 0)
            if gauge.axis == axis and charge:
                factor = power(element.gauges[f"{gauge_name}@{axis}"], charge, gauge.kind)
                state = state * factor.reshape(-1, *[1] * (-dim - 1))
        if axis in element.permutations:
            state = state.index_select(dim, element.permutations[axis])
    return state.flatten(-len(axes))
