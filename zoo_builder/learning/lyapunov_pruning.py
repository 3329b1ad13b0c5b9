"""Lyapunov noise pruning, reconstructed from the public description of its four steps."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from zoo_builder.learning.pruning import (
    Array,
    Parent,
    differences,
    keep_probabilities,
    linearised,
    noise_covariance,
    thinned,
)
from zoo_builder.learning.surrogate_search import minimise

ADDED = 0.1
"""Share of the connections that stay which the third step adds; the first keeps so many fewer."""
FARTHEST = 3.0
"""Largest factor by which the fourth step moves the mean time constant."""
SHAPES = (0.5, 20.0)
"""Shapes of the gamma distribution that the fourth step chooses from."""


def by_lyapunov_noise(parent: Parent, count: float, generator: torch.Generator, unit_density: float = 1.0) -> Array:
    """Connections between different units (to, from) after the first three of the four steps.

    Chakraborty et al. (ICLR 2024, arXiv 2403.03409), as reviews describe it. (1) Connections stay with p_ij =
    min(1, K |L_ij| (C_ii + C_jj - 2 sign(W_ij) C_ij)) and are divided by it, C as in noise pruning, L_ij the harmonic
    mean of the Lyapunov exponents of the neighbourhoods of i and j. (2) Units of the lowest betweenness centrality are
    taken out, 1 - `unit_density` of them; a path is as long as the sum of |L| along it. (3) Connections are added until
    there are `count`, so that eigenvectors are less localised and degrees less alike: the peak of the most localised
    eigenvector is joined to the unit of highest degree within two connections of it.

    Reconstructed: that a neighbourhood's exponent is the spectral abscissa of the linear model within it, that paths
    weigh |L|, and which units are joined, by what weight.
    """
    edges = parent.edges
    model = linearised(edges)
    exponents = pair_exponents(model, edges)
    importance = np.abs(exponents) * differences(edges, noise_covariance(model))
    kept = thinned(edges, keep_probabilities(importance, (1 - ADDED) * count), generator)
    alive = np.ones(len(edges), dtype=bool)
    dropped = num_lost(len(edges), unit_density)
    if dropped:
        alive[np.argsort(betweenness(kept, np.abs(exponents)), kind="stable")[:dropped]] = False
        kept = kept * np.outer(alive, alive)
    return spread_out(kept, alive, round(count), generator)


def num_lost(size: int, unit_density: float) -> int:
    """Number of units that are taken out of so many."""
    return round((1 - unit_density) * size)


def pair_exponents(model: Array, edges: Array) -> Array:
    """Harmonic mean L_ij (to, from) of the exponents of the neighbourhoods of i and j; all are below 0.

    The exponent of a neighbourhood, a unit with those that it reads or that read it, is the spectral abscissa of the
    linear model cut to it: the Lyapunov exponent of a linear flow.
    """
    near = (edges != 0) | (edges.T != 0) | np.eye(len(edges), dtype=bool)
    parts = [model[np.ix_(row, row)] for row in near]
    rates = 1 / np.array([np.linalg.eigvals(part).real.max() for part in parts])
    pairs: Array = 2 / (rates[:, None] + rates[None])
    return pairs


def betweenness(edges: Array, lengths: Array) -> Array:
    """Betweenness centrality (unit,) in the graph of the connections from -> to, whose lengths are `lengths`."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(edges)))
    graph.add_weighted_edges_from((int(j), int(i), lengths[i, j]) for i, j in zip(*edges.nonzero(), strict=True))
    central = networkx.betweenness_centrality(graph, weight="weight")
    return np.array([central[unit] for unit in range(len(edges))])


def spread_out(edges: Array, alive: NDArray[np.bool_], count: int, generator: torch.Generator) -> Array:
    """Connections (to, from) with others added among living units, until there are `count` or none is free."""
    edges = edges.copy()
    strengths = np.abs(edges[edges != 0])
    strength = float(np.median(strengths)) if len(strengths) else 1.0
    while (edges != 0).sum() < count:
        pair = next_pair(edges, alive)
        if pair is None:
            break
        sign = 1 - 2 * int(torch.randint(2, (), generator=generator))
        edges[pair] = sign * strength
    return edges


def next_pair(edges: Array, alive: NDArray[np.bool_]) -> tuple[int, int] | None:
    """The connection (to, from) to add: from the busiest unit near the peak of the most localised eigenvector to it."""
    joined = (edges != 0) | (edges.T != 0)
    degrees = (edges != 0).sum(0) + (edges != 0).sum(1)
    near = joined | (joined.astype(int) @ joined.astype(int) > 0)
    free = (edges == 0) & np.outer(alive, alive) & ~np.eye(len(edges), dtype=bool)
    for peak in peaks(linearised(edges)):
        for allowed in (free[peak] & near[peak], free[peak]):
            if allowed.any():
                return int(peak), int(np.argmax(np.where(allowed, degrees, -1)))
    return None


def peaks(model: Array) -> list[int]:
    """Units where eigenvectors peak, of those with the largest inverse participation ratios first, then the others."""
    _, vectors = np.linalg.eig(model)
    shares = np.abs(vectors) ** 2
    shares = shares / shares.sum(0)
    order = np.argsort(-(shares**2).sum(0), kind="stable")
    return list(dict.fromkeys([*(int(shares[:, k].argmax()) for k in order), *range(len(model))]))


def retimed(tau: Array, parent: Array, pruned: Array, generator: torch.Generator) -> Array:
    """The fourth step: time constants (unit,), 1 or above, whose spectrum is nearest to that of the parent.

    Bayesian optimisation chooses mean and shape of a gamma distribution, whose quantiles the units get in the order of
    the time constants that they had. Reconstructed: the objective is the mean distance of the Lyapunov exponents
    log |eigenvalue| of diag(exp(-1 / tau)) + W, sorted, from those of the parent with its own time constants; without
    an improvement tau stays.
    """
    from scipy.special import gammaincinv

    places = (tau.argsort(kind="stable").argsort(kind="stable") + 0.5) / len(tau)
    aim = spectrum(tau, parent)

    def distance(candidate: Array) -> float:
        return float(np.abs(spectrum(candidate, pruned) - aim).mean())

    def at(point: Array) -> Array:
        mean, shape = np.exp(point)
        quantiles: Array = mean / shape * gammaincinv(shape, places)
        return quantiles.clip(min=1)

    means = tau.mean() / FARTHEST, tau.mean() * FARTHEST
    low, high = np.log([(means[0], SHAPES[0]), (means[1], SHAPES[1])])
    best = at(minimise(lambda point: distance(at(point)), low, high, generator))
    return best if distance(best) < distance(tau) else tau


def spectrum(tau: Array, edges: Array) -> Array:
    """Lyapunov exponents (unit,) of h' = (diag(exp(-1 / tau)) + W) h, descending."""
    values = np.abs(np.linalg.eigvals(np.diag(np.exp(-1 / tau)) + edges))
    exponents: Array = np.log(np.maximum(values, 1e-12))
    return np.sort(exponents)[::-1]
