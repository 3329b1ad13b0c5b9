"""Weights that torch.nn.utils computes from other tensors: made plain where that is exact, else refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

REMOVE = (
    "make it plain with torch.nn.utils.parametrize.remove_parametrizations(module, '{name}'), or with the function of "
    "torch.nn.utils that removes what was put there"
)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one module's state dict, with each weight in place of what it is computed from.

    Weight normalisation, v g / |v| (Salimans and Kingma, NeurIPS 2016), and pruning, orig * mask, are known, by the
    names that torch.nn.utils gives; all other tensors stay as they are.
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
    """The weights that a module uses now, by name; ValueError where one is computed in a way that is not known."""
    what = f"the torch.nn.{parametrize.type_before_parametrizations(module).__name__}"
    weights = plain({name: tensor.detach() for name, tensor in module.state_dict().items()})
    refuse_computed(what, expected, weights)
    if parametrize.is_parametrized(module):
        with torch.no_grad():
            for name in expected:
                # Two tensors may be named as those of weight normalisation, and used in another way.
                if name in weights and not torch.allclose(weights[name], getattr(module, name), equal_nan=True):
                    raise ValueError(_message(what, name, [f"parametrizations.{name}"]))
    return weights


def refuse_computed(what: str, expected: Collection[str], tensors: Collection[str]) -> None:
    """Raise ValueError if an expected tensor is missing while others are there from which it seems to be computed."""
    for name in sorted(set(expected) - set(tensors)):
        sources = [key for key in tensors if re.search(rf"(^|\.){re.escape(name)}(_(?!reverse|l\d)|\.)", key)]
        if sources:
            raise ValueError(_message(what, name, sources))


def _message(what: str, name: str, sources: Collection[str]) -> str:
    return (
        f"'{name}' of {what} is computed from {sorted(sources)[:5]} in a way that is not known here; "
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


FORMS: tuple[tuple[re.Pattern[str], str, Callable[[Tensor, Tensor], Tensor | None]], ...] = (
    (re.compile(r"(\w+)_g"), "{}_v", _normed),
    (re.compile(r"parametrizations\.(\w+)\.original0"), "parametrizations.{}.original1", _normed),
    (re.compile(r"(\w+)_orig"), "{}_mask", _pruned),
)
"""The name of a tensor, that of its partner, and what both make, as torch.nn.utils writes them."""
