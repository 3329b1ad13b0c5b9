"""Weights that torch.nn.utils computes from other tensors: replaced by their values, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

REMOVE = (
    "make it plain with torch.nn.utils.parametrize.remove_parametrizations(module, '{name}'), or with the function of "
    "torch.nn.utils that removes what was put there"
)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one module's state dict, with each computed weight in place of its ingredients.

    Weight normalisation, v g / |v| (Salimans and Kingma, NeurIPS 2016), and pruning, orig * mask, are recognised by
    the names that torch.nn.utils gives; all other tensors stay as they are.
    """
    result = dict(tensors)
    for first, second, combined in FORMS:
        for key in tensors:
            match = first.fullmatch(key)
            if match is None or second.format(match[1]) not in tensors:
                continue
            weight = combined(tensors[key], tensors[second.format(match[1])])
            if weight is not None and match[1] not in tensors:
                del result[key], result[second.format(match[1])]
                result[match[1]] = weight
    return result


def weights_of(module: nn.Module, expected: Collection[str]) -> dict[str, Tensor]:
    """The weights that a module uses now, by name; ValueError where a weight is computed in an unknown way."""
    module_name = f"the torch.nn.{parametrize.type_before_parametrizations(module).__name__}"
    weights = plain({name: tensor.detach() for name, tensor in module.state_dict().items()})
    refuse_computed(module_name, expected, weights)
    if parametrize.is_parametrized(module):
        with torch.no_grad():
            for name in expected:
                # Tensors may have the names of weight normalisation and be used in another way.
                if name in weights and not torch.allclose(weights[name], getattr(module, name), equal_nan=True):
                    raise ValueError(_message(module_name, name, [f"parametrizations.{name}"]))
    return weights


def refuse_computed(owner: str, expected: Collection[str], tensors: Collection[str]) -> None:
    """Raise ValueError if an expected tensor is missing, but tensors from which it seems to be computed are not."""
    for name in sorted(set(expected) - set(tensors)):
        sources = [key for key in tensors if re.search(rf"(^|\.){re.escape(name)}(_(?!reverse|l\d)|\.)", key)]
        if sources:
            raise ValueError(_message(owner, name, sources))


def _message(owner: str, name: str, sources: Collection[str]) -> str:
    return (
        f"'{name}' of {owner} is computed from {sorted(sources)[:5]} in a way that is not known here; "
        f"{REMOVE.format(name=name)}."
    )


def _normed(g: Tensor, v: Tensor) -> Tensor | None:
    """Weight normalisation of v (to, from) by g, whose axes of size 1 are normed over; None if g has another shape."""
    if v.dim() != 2 or not (v.is_floating_point() and g.is_floating_point()):
        return None
    if g.dim() == 0:
        norm: Tensor = torch.linalg.vector_norm(v)
        return v * (g / norm)
    axes = [axis for axis in range(2) if g.dim() == 2 and g.shape[axis] == 1]
    if not axes or tuple(g.shape) not in ((v.shape[0], 1), (1, v.shape[1])):
        return None
    norm = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
    return v * (g / norm)


def _pruned(orig: Tensor, mask: Tensor) -> Tensor | None:
    return orig * mask.to(orig.dtype) if mask.shape == orig.shape else None


class Form(NamedTuple):
    """A computed weight NAME: patterns of the names of its two ingredients, and their combination."""

    first: re.Pattern[str]
    second: str
    combined: Callable[[Tensor, Tensor], Tensor | None]


FORMS = (
    Form(re.compile(r"(\w+)_g"), "{}_v", _normed),
    Form(re.compile(r"parametrizations\.(\w+)\.original0"), "parametrizations.{}.original1", _normed),
    Form(re.compile(r"(\w+)_orig"), "{}_mask", _pruned),
)
"""The forms of torch.nn.utils: weight normalisation, old and new, and pruning."""
