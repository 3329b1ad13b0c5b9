"""Spreads: distributions of a parameter over the models of a cohort."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightspace.components.discovery import refuse_unknown_name
from weightspace.rollout import Streams
from weightspace.terminal import shown

LARGEST = 1e300
"""Largest number in a recipe: beyond it, the difference of two is infinite."""


@dataclass(frozen=True)
class Spread:
    """One distribution over models: `kind` is a key of `KINDS`, `bounds` its numbers as the recipe gives them."""

    kind: str
    bounds: tuple[float, ...]

    def draw(self, streams: Streams) -> Tensor:
        """One value per model (models,), float64, a pure function of each model's own stream."""
        return KINDS[self.kind](self.bounds, streams.uniform(1, dtype=torch.float64)[:, 0])

    @property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return min(self.bounds), max(self.bounds)

    def beyond(self, values: Tensor, share: float) -> Tensor:
        """Mask (models,), bool, of values in the top `share` of the range (of its logarithm for log_uniform)."""
        low, high = self.extremes
        if low == high:
            return torch.zeros_like(values, dtype=torch.bool)
        if self.kind == "choice":
            return values == high
        if self.kind == "log_uniform":
            values, low, high = values.log(), math.log(low), math.log(high)
        return values > high - share * (high - low)


def _fixed(bounds: tuple[float, ...], u: Tensor) -> Tensor:
    return torch.full_like(u, bounds[0])


def _uniform(bounds: tuple[float, ...], u: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _log_uniform(bounds: tuple[float, ...], u: Tensor) -> Tensor:
    return torch.exp(_uniform((math.log(bounds[0]), math.log(bounds[1])), u))


def _integers(bounds: tuple[float, ...], u: Tensor) -> Tensor:
    return bounds[0] + torch.floor((bounds[1] - bounds[0] + 1) * u)


def _choice(bounds: tuple[float, ...], u: Tensor) -> Tensor:
    return torch.tensor(bounds, dtype=u.dtype)[torch.floor(len(bounds) * u).long()]


# Functions of the bounds and of uniform draws (models,) in [0, 1): values (models,).
KINDS: dict[str, Callable[[tuple[float, ...], Tensor], Tensor]] = {
    "fixed": _fixed,
    "uniform": _uniform,
    "log_uniform": _log_uniform,
    "integers": _integers,
    "choice": _choice,
}


def parse_spread(where: str, value: Any) -> Spread:
    """The spread a recipe asks for: a number, {uniform|log_uniform|integers: [low, high]} or {choice: [...]}."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Mapping)):
        raise ValueError(f"{where} is {shown(value)}; give a number or a spread such as {{uniform: [0, 1]}}.")
    if not isinstance(value, Mapping):
        _refuse_odd_numbers(where, "fixed", [value])
        return Spread("fixed", (float(value),))
    kinds = [kind for kind in KINDS if kind != "fixed"]
    if len(value) != 1:
        raise ValueError(f"{where} has {shown(list(value))}; a spread is exactly one of {kinds}.")
    kind, bounds = next(iter(value.items()))
    refuse_unknown_name(f"spread of {where}", kind, kinds)
    if not isinstance(bounds, list):
        raise ValueError(f"{where}: '{kind}' takes a list of numbers, found {shown(bounds)}.")
    _refuse_odd_numbers(where, kind, bounds)
    numbers = tuple(float(b) for b in bounds)
    # Draws do not depend on the order of the choices, which means nothing.
    spread = Spread(kind, tuple(sorted(numbers)) if kind == "choice" else numbers)
    _check_bounds(where, spread)
    return spread


def _refuse_odd_numbers(where: str, kind: str, numbers: list[Any]) -> None:
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= LARGEST:
            raise ValueError(f"{where}: '{kind}' takes numbers of at most {LARGEST:g}, found {shown(number)}.")


def _check_bounds(where: str, spread: Spread) -> None:
    bounds = spread.bounds
    if spread.kind == "choice":
        if not bounds:
            raise ValueError(f"{where}: 'choice' needs at least one value.")
        return
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        bounds_text = shown(list(bounds))
        raise ValueError(f"{where}: '{spread.kind}' takes [low, high] with low at most high, found {bounds_text}.")
    if spread.kind == "log_uniform" and bounds[0] <= 0:
        raise ValueError(f"{where}: 'log_uniform' needs bounds above 0, found {shown(list(bounds))}.")
    if spread.kind == "integers" and any(b != round(b) for b in bounds):
        raise ValueError(f"{where}: 'integers' takes whole numbers, found {shown(list(bounds))}.")
