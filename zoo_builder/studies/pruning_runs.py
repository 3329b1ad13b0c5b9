"""Numbers of the study of pruning: slow modes of clustered networks, and memory of spiking networks at equal rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weightspace.rollout import Method, Streams, generator, rollout
from weightspace.spec import Params
from weightspace.store import Stack
from zoo_builder.labels.memory_capacity import capacities
from zoo_builder.learning.pruning import (
    Array,
    Parent,
    by_chance,
    by_magnitude,
    by_noise,
    keep_probabilities,
    linearised,
    thinned,
)

DENSITIES = (0.5, 0.2, 0.1)
CLUSTERS, WITHIN, BETWEEN, WEAK = 3, 0.6, 30, 0.4
"""Clusters of a network, density of connections within one, pairs of units that are joined across clusters, by
connections both ways, and how strong these are; those within have a strength from 0.5 to 1.5."""
SLOW = 3
"""Eigenvalues that are compared."""
HOLD, HOLDS, EARLY, LANES = 10, 400, 20, 16
"""Steps for which an input stays, inputs that are remembered, inputs before, and sequences."""
LAGS = 12
GAIN = 0.1
"""Bound of the input."""
TOGETHER = 4
"""Networks whose potentials are kept at once."""
TRIALS, WIDEST = 14, 0.5
"""Halvings of the range of the drive that equals the rates, and its largest size."""


def by_strength(parent: Parent, count: float, stream: torch.Generator) -> Array:
    """Connections with probabilities proportional to their strengths, divided by these."""
    edges = parent.edges
    return thinned(edges, keep_probabilities(np.abs(edges), count), stream)


RULES: Mapping[str, Callable[[Parent, float, torch.Generator], Array]] = {
    "noise": by_noise,
    "uniform": by_chance,
    "magnitude": by_magnitude,
    "strength": by_strength,
}
"""Rule of pruning -> connections that stay; `strength` draws what `magnitude` ranks."""


def clustered(size: int, stream: torch.Generator) -> Array:
    """Symmetric excitatory connections (to, from) of dense clusters that few weak ones join: these carry slow modes."""
    places = np.arange(size) * CLUSTERS // size
    same = places[:, None] == places[None]
    exists, strength = (torch.rand(size, size, generator=stream, dtype=torch.float64).numpy() for _ in range(2))
    upper = np.triu(np.where(same & (exists < WITHIN), 0.5 + strength, 0), 1)
    apart = np.argwhere(np.triu(~same, 1))
    chosen = apart[torch.randperm(len(apart), generator=stream)[:BETWEEN].numpy()]
    upper[chosen[:, 0], chosen[:, 1]] = WEAK
    whole: Array = upper + upper.T
    return whole


def slowest(edges: Array) -> NDArray[np.complex128]:
    """The eigenvalues of largest real part of the linear model with the matched diagonal."""
    values: NDArray[np.complex128] = np.linalg.eigvals(linearised(edges)).astype(complex)
    return values[np.argsort(-values.real)][:SLOW]


def slow_errors(size: int, draws: int, seed: int) -> dict[tuple[str, float], Tensor]:
    """Relative errors (draw,) of the slow eigenvalues of pruned networks, by rule and density."""
    errors: dict[tuple[str, float], list[float]] = {}
    for draw in range(draws):
        weight = clustered(size, generator(seed, str(draw), "pruning/clusters"))
        parent = Parent(weight=weight, activity=np.ones(size))
        exact, count = slowest(weight), (weight != 0).sum()
        for name, rule in RULES.items():
            for density in DENSITIES:
                stream = generator(seed, f"{draw}/{density}", "pruning/prune")
                pruned = slowest(rule(parent, density * count, stream))
                errors.setdefault((name, density), []).append(float((np.abs(pruned - exact) / np.abs(exact)).mean()))
    return {key: torch.tensor(column) for key, column in errors.items()}


@dataclass(frozen=True, kw_only=True)
class Memories:
    """Memory capacities (models,) of networks with time constants of their own and of their twins with equal ones."""

    heterogeneous: Tensor
    homogeneous: Tensor
    rates: tuple[Tensor, Tensor]
    """Firing rates (models,) per step of both, in this order."""
    unmatched: Tensor
    """Firing rates of the twins before their drive was raised or lowered."""


def memories(stack: Stack, streams: Streams, method: Method) -> Memories:
    """Memory of spiking networks of one input, and of their twins: all time constants at their mean, at equal rates.

    The input, uniform within GAIN, stays for HOLD steps; from the potentials at the last of them it is read linearly
    how far back (`capacities`), in inputs. A constant drive that the twins get beside it makes their firing rate that
    of the networks.
    """
    u = GAIN * (2 * streams.uniform(EARLY + HOLDS, LANES) - 1)
    twins = dict(stack.params)
    twins["tau"] = twins["tau"].mean(1, keepdim=True).expand_as(twins["tau"]).contiguous()
    few = u[:, : HOLDS // 4]
    aim = rates(stack, few, method)
    unmatched = rates(replace(stack, params=twins), few, method)
    low, high = torch.full_like(aim, -WIDEST), torch.full_like(aim, WIDEST)
    for _ in range(TRIALS):
        middle = (low + high) / 2
        above = rates(replace(stack, params=driven(twins, middle)), few, method) > aim
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    matched = replace(stack, params=driven(twins, (low + high) / 2))
    (first, own), (second, other) = (remembered(one, u, method) for one in (stack, matched))
    return Memories(heterogeneous=first, homogeneous=second, rates=(own, other), unmatched=unmatched)


def driven(params: Params, drive: Tensor) -> Params:
    """The params with a constant drive (models,) added to every unit."""
    return {**params, "bias": params["bias"] + drive[:, None].to(params["bias"].dtype)}


def runs(stack: Stack, u: Tensor, method: Method) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Models, potentials (models, input, lane, unit) at the last step of each input, and firing rates (models,)."""
    for first in range(0, len(u), TOGETHER):
        some = slice(first, first + TOGETHER)
        x = u[some].repeat_interleave(HOLD, 1)[..., None]
        states = rollout(stack.family, {k: v[some] for k, v in stack.params.items()}, x, method=method).states
        yield some, states["v"][:, HOLD - 1 :: HOLD], (states["v"] > 1).double().mean((1, 2, 3))


def rates(stack: Stack, u: Tensor, method: Method) -> Tensor:
    """Firing rates (models,) per step."""
    return torch.cat([rate for _, _, rate in runs(stack, u, method)])


def remembered(stack: Stack, u: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Memory capacities (models,), in inputs, and firing rates (models,)."""
    capacity, fired = [], []
    for some, potentials, rate in runs(stack, u, method):
        # The newest input is lag 0, which is no memory: lag 1 is the one before it.
        past = u[some].double()
        capacity.append(capacities([potentials[:, EARLY:].double()], past, LAGS, HOLDS).sum(1))
        fired.append(rate)
    return torch.cat(capacity), torch.cat(fired)
