"""Pruning of a recurrent matrix: which connections stay, and how strong they are then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAK = 0.02
"""Decay of each unit in the linear model, beyond what balances its connections; small, so that it has slow modes."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A recurrent matrix that is to be pruned, and what is known about its units."""

    weight: Array
    """Connections (to, from); 0 where there is none. Those of units to themselves are left as they are."""
    activity: Array
    """How active each unit is (unit,), 0 or above."""

    @property
    def edges(self) -> Array:
        """Connections between different units (to, from)."""
        edges: Array = self.weight * (1 - np.eye(len(self.weight)))
        return edges


def linearised(edges: Array, leak: float = LEAK) -> Array:
    """A = W - D of the linear model dx/dt = A x + noise with the matched diagonal D_ii = leak + sum_j |W_ij|.

    Whatever W (to, from), A is stable: its discs of Gershgorin lie left of -leak.
    """
    model: Array = edges - np.diag(leak + np.abs(edges).sum(1))
    return model


def noise_covariance(model: Array) -> Array:
    """Stationary covariance C (unit, unit) of dx/dt = A x + white noise: A C + C A^T + I = 0."""
    from scipy.linalg import solve_continuous_lyapunov

    covariance: Array = solve_continuous_lyapunov(model, -np.eye(len(model)))
    return covariance


def differences(edges: Array, covariance: Array) -> Array:
    """Var(x_i - x_j) of an excitatory connection, Var(x_i + x_j) of an inhibitory one, 0 where there is none."""
    variances = np.diag(covariance)
    apart = variances[:, None] + variances[None] - 2 * np.sign(edges) * covariance
    exist: Array = apart * (edges != 0)
    return exist


def keep_probabilities(importance: Array, expected: float) -> Array:
    """p = min(1, K importance) with the K for which the sum of p is `expected`, or 1 wherever importance is above 0."""
    count = int((importance > 0).sum())
    if expected >= count:
        return np.where(importance > 0, 1.0, 0.0)
    # With the k largest at 1, K is what is left to expect over what is left of importance.
    ordered = np.sort(importance[importance > 0])[::-1]
    left = np.concatenate([ordered[::-1].cumsum()[::-1], [0.0]])
    for certain in range(count):
        factor = (expected - certain) / left[certain]
        if factor * ordered[certain] <= 1:
            break
    probability: Array = np.minimum(1, factor * importance)
    return probability


def thinned(edges: Array, probability: Array, generator: torch.Generator) -> Array:
    """Each connection with its probability, divided by it so that its mean stays; else 0.

    Of symmetric connections both directions are drawn at once: the model then keeps its uniform stationary state.
    """
    draws = torch.rand(edges.shape, generator=generator, dtype=torch.float64).numpy()
    if np.array_equal(edges, edges.T):
        draws = np.triu(draws) + np.triu(draws, 1).T
    return np.where(draws < probability, edges / np.where(probability > 0, probability, 1), 0)


def largest(edges: Array, importance: Array, count: int) -> Array:
    """The `count` connections of largest importance, as they are; else 0."""
    order = np.argsort(-np.where(edges != 0, importance, -1), axis=None, kind="stable")[:count]
    kept = np.zeros(edges.size)
    kept[order] = edges.flatten()[order]
    return kept.reshape(edges.shape)


def by_noise(parent: Parent, count: float, generator: torch.Generator) -> Array:
    """Noise pruning with the matched diagonal (Moore and Chaudhuri, NeurIPS 2020).

    p_ij = min(1, K |W_ij| (C_ii + C_jj - 2 sign(W_ij) C_ij)), C the covariance of the linear model under white noise;
    what is kept is divided by p_ij. It keeps the slow modes of symmetric, diagonally dominant models.
    """
    edges = parent.edges
    importance = np.abs(edges) * differences(edges, noise_covariance(linearised(edges)))
    return thinned(edges, keep_probabilities(importance, count), generator)


def by_chance(parent: Parent, count: float, generator: torch.Generator) -> Array:
    """Every connection with the same probability p, divided by p."""
    edges = parent.edges
    return thinned(edges, keep_probabilities((edges != 0).astype(float), count), generator)


def by_magnitude(parent: Parent, count: float, generator: torch.Generator) -> Array:
    """The strongest connections, as they are (Han et al., NeurIPS 2015)."""
    edges = parent.edges
    return largest(edges, np.abs(edges), round(count))


def by_activity(parent: Parent, count: float, generator: torch.Generator) -> Array:
    """The connections that carry most, |W_ij| times the activity of unit j, as they are."""
    edges = parent.edges
    return largest(edges, np.abs(edges) * parent.activity[None], round(count))


METHODS: Mapping[str, Callable[[Parent, float, torch.Generator], Any]] = {
    "noise": by_noise,
    "magnitude": by_magnitude,
    "activity": by_activity,
    "uniform": by_chance,
}
"""Method -> connections between different units (to, from) that stay of a parent, about so many of them."""
