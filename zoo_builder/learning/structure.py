"""Structure of random params: rank, sparsity and spectrum of recurrent connections, by the declaration alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.spec import Params, WeightSpec


def of_rank(spec: WeightSpec, params: Params, share: float) -> Params:
    """Params of one model with recurrent maps (to, from) of rank max(1, round(share n)), n the smaller size.

    The largest singular values stay, scaled to the Frobenius norm of all of them. Channel rows are matrices of their
    own; weights of products (to, from, from) are matrices (to, pair).
    """
    return params | {name: _truncated(spec, name, params[name], share) for name in _recurrent_maps(spec)}


def _recurrent_maps(spec: WeightSpec) -> tuple[str, ...]:
    return (*spec.recurrent(), *spec.recurrent_products())


def _truncated(spec: WeightSpec, name: str, value: Tensor, share: float) -> Tensor:
    matrices = value.double().flatten(value.dim() - len(spec.node_axes(name)) + 1)
    to, values, source = torch.linalg.svd(matrices, full_matrices=False)
    rank = max(1, round(share * values.shape[-1]))
    kept = values[..., :rank]
    kept = kept * _ratio(values.norm(dim=-1, keepdim=True), kept.norm(dim=-1, keepdim=True))
    product: Tensor = (to[..., :rank] * kept[..., None, :]) @ source[..., :rank, :]
    return product.reshape(value.shape).to(value)


def sparse(spec: WeightSpec, params: Params, sparsity: float, stream: torch.Generator) -> Params:
    """Params of one model in which connections into units, read-outs left out, are absent with chance `sparsity`.

    A map without a mask loses the entry; a tensor with a mask loses it in the mask, with all tensors that share it.
    """
    changed = {}
    for name in _connections_into_units(spec):
        present = torch.rand(params[name].shape, generator=stream, dtype=torch.float64) >= sparsity
        changed[name] = params[name] * present
    return params | changed


def _connections_into_units(spec: WeightSpec) -> list[str]:
    """Maps without a mask, and masks, that end in hidden units or factors."""
    names = []
    for name, tensor in spec.tensors.items():
        nodes = spec.node_axes(name)
        ends = len(nodes) > 1 and spec.axes[nodes[0]].kind in ("hidden", "factor")
        if ends and (tensor.role == "mask" or (tensor.use == "map" and tensor.mask is None)):
            names.append(name)
    return names


def with_radius(family: Family, params: Params, radius: float) -> Params:
    """Params of one model with every recurrent matrix, as the function uses it, scaled to a spectral radius.

    A matrix whose eigenvalues are all 0 stays.
    """
    changed, used = {}, family.effective(params)
    for name, eigenvalues in _spectra(family):
        largest = eigenvalues(used[name].double()).abs().amax(-1)
        factor = _ratio(torch.full_like(largest, radius), largest)
        shape = factor.shape + (1,) * (params[name].dim() - factor.dim())
        changed[name] = (params[name].double() * factor.reshape(shape)).to(params[name])
    return params | changed


def shifted(family: Family, params: Params, shift: float) -> Params:
    """Params of one model with a number added to all eigenvalues of every recurrent matrix: to its diagonal."""
    changed = {}
    for name, eigenvalues in _spectra(family):
        value = params[name]
        diagonal = torch.ones_like(value) if eigenvalues is _diagonal else torch.eye(value.shape[-1]).to(value)
        changed[name] = value + shift * diagonal
    return params | changed


def _spectra(family: Family) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """Recurrent maps and diagonals that the function uses as they are stored, up to zeros, with their eigenvalues.

    Left out is what is stored as something else, such as the logarithm of an eigenvalue or the factors of a matrix.
    """
    spec, used = family.spec, family.effective_spec
    used_diagonals = {name for name, _ in used.vectors(diagonal=True)}
    matrices = [(name, torch.linalg.eigvals) for name in spec.recurrent() if name in used.recurrent()]
    diagonals = [(name, _diagonal) for name, _ in spec.vectors(diagonal=True) if name in used_diagonals]
    return [*matrices, *diagonals]


def _diagonal(value: Tensor) -> Tensor:
    return value


def _ratio(wanted: Tensor, present: Tensor) -> Tensor:
    """Factors that make `wanted` of `present`, 1 where that is 0."""
    return torch.where(present > 0, wanted / torch.where(present > 0, present, 1), 1)
