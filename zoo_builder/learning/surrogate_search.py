"""Bayesian optimisation: the search for a minimum by a Gaussian process fitted to the values so far."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

FIRST, ROUNDS, CANDIDATES = 8, 16, 256
"""Points drawn at first, points chosen then, and candidates for each choice."""
LENGTH = 0.25
"""Length scale of the process, as a share of each side of the box."""
JITTER = 1e-6
"""Variance of the noise that the process allows for, as a share of that of its values."""


def minimise(function: Callable[[Array], float], low: Array, high: Array, generator: torch.Generator) -> Array:
    """The best point (side,) of a box that was tried.

    A Gaussian process with a squared exponential kernel is fitted to the values, and the candidate of the largest
    expected improvement is tried next (Jones, Schonlau and Welch, Journal of Global Optimization 1998).
    """

    def drawn(count: int) -> Array:
        points: Array = torch.rand(count, len(low), generator=generator, dtype=torch.float64).numpy()
        return points

    points = drawn(FIRST)
    values = np.array([function(low + (high - low) * point) for point in points])
    for _ in range(ROUNDS):
        candidates = drawn(CANDIDATES)
        best = candidates[np.argmax(expected_improvement(points, values, candidates))]
        points = np.concatenate([points, best[None]])
        values = np.append(values, function(low + (high - low) * best))
    least: Array = low + (high - low) * points[np.argmin(values)]
    return least


def expected_improvement(points: Array, values: Array, candidates: Array) -> Array:
    """E max(least - f, 0) (candidate,) for f of the process fitted to values (point,) at points (point, side)."""
    from scipy.special import ndtr

    mean, deviation = posterior(points, values, candidates)
    gain = values.min() - mean
    standard = gain / deviation
    improvement: Array = gain * ndtr(standard) + deviation * np.exp(-(standard**2) / 2) / np.sqrt(2 * np.pi)
    return improvement


def posterior(points: Array, values: Array, candidates: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (candidate,) of the process given values (point,) at points (point, side)."""
    scale = max(float(values.std()), 1e-12)
    gram = kernel(points, points) + JITTER * np.eye(len(points))
    across = kernel(points, candidates)
    mean: Array = values.mean() + across.T @ np.linalg.solve(gram, values - values.mean())
    variance = 1 + JITTER - (across * np.linalg.solve(gram, across)).sum(0)
    return mean, scale * np.sqrt(np.maximum(variance, JITTER))


def kernel(left: Array, right: Array) -> Array:
    """Squared exponential kernel (point, point) of points of the unit box."""
    squares = ((left[:, None] - right[None]) ** 2).sum(-1)
    similar: Array = np.exp(-squares / (2 * LENGTH**2))
    return similar
