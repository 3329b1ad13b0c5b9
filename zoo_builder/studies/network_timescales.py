"""Time scales of driven neurons: exponentials fitted to their autocorrelations."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, Streams, rollout
from weightspace.spec import Params

BURN_IN, STEPS, TRIALS = 200, 1500, 8
LARGEST_LAG = 30
"""Last lag of the fit: at larger ones the bias of an autocorrelation from few samples shows."""
TAUS = torch.logspace(-0.5, 2, 56, dtype=torch.float64)
"""Candidates for two time scales, from 0.3 to 100 steps; each is 11% above the one before."""
FINE_TAUS = torch.logspace(-0.5, 2, 1101, dtype=torch.float64)
"""Candidates for one time scale, so near each other that a second exponential never makes up for their distance."""
ROWS_TOGETHER = 64
"""Autocorrelations that are fitted at once, so that the table of all pairs of candidates stays small."""


def network_timescales(family: Family, params: Params, streams: Streams, method: Method) -> Tensor:
    """Time scale tau_net (models, hidden) of each neuron of networks driven by random bits; NaN if it stays constant.

    Each trial has its own probability of a 1, uniform from 0 to 1, as in Khajehabdollahi et al. (ICLR 2024).
    """
    chance = streams.uniform(1, TRIALS)
    bits = (streams.uniform(BURN_IN + STEPS, TRIALS) < chance).to(torch.float32)
    states = rollout(family, params, bits[..., None], method=method).states["h"][:, BURN_IN:]
    correlations = autocorrelations(states.double())
    timescales: Tensor = fitted(correlations.flatten(0, 1)).unflatten(0, correlations.shape[:2])
    return timescales


def autocorrelations(states: Tensor) -> Tensor:
    """Autocorrelation (models, neuron, lag), lags 0 to LARGEST_LAG, of states (models, time, trial, neuron).

    Autocovariances about the mean of each trial, each divided by its number of products, are averaged over the trials.
    """
    # Model by model: large intermediate results cost more than the arithmetic.
    covariance = torch.stack([_autocovariances(trajectories) for trajectories in states])
    # Rounding of a constant is no variance.
    varies = covariance[..., :1] > 1e-20
    return torch.where(varies, covariance / torch.where(varies, covariance[..., :1], 1), torch.nan)


def _autocovariances(states: Tensor) -> Tensor:
    num_steps = states.shape[0]
    # Zero padding: else the last steps would wrap round to the first ones.
    size = 1 << (num_steps + LARGEST_LAG - 1).bit_length()
    series = (states - states.mean(0)).flatten(1).T.contiguous()
    power = torch.fft.rfft(series, size).abs().square().unflatten(0, states.shape[1:]).mean(0)
    sums = torch.fft.irfft(power, size)[:, : LARGEST_LAG + 1]
    means: Tensor = sums / (num_steps - torch.arange(LARGEST_LAG + 1))
    return means


def fitted(correlations: Tensor) -> Tensor:
    """Time scale (rows,) of autocorrelations (rows, lag): of one exponential, or the slower one of two.

    a e^(-t/tau) and a (c e^(-t/tau1) + (1 - c) e^(-t/tau2)), a and c from 0 to 1, are fitted by least squares over
    TAUS; the better one by Akaike's criterion counts. Rows that are not finite give NaN.
    """
    finite = correlations.isfinite().all(1)
    parts = torch.where(finite[:, None], correlations, 0.0).split(ROWS_TOGETHER)
    tau = torch.cat([_fitted(part) for part in parts])
    return torch.where(finite, tau, torch.nan)


def _fitted(y: Tensor) -> Tensor:
    lags, num_lags = torch.arange(y.shape[1], dtype=y.dtype)[:, None], y.shape[1]
    square = y.square().sum(1, keepdim=True)
    basis = torch.exp(-lags / FINE_TAUS)
    norm, along = basis.square().sum(0), y @ basis
    scale = (along / norm).clamp(0, 1)
    residual_of_one, single = (square - 2 * scale * along + scale.square() * norm).min(1)
    basis = torch.exp(-lags / TAUS)
    gram, along = basis.T @ basis, y @ basis
    fast, slow = torch.triu_indices(len(TAUS), len(TAUS), 1)
    residual_of_two, pair = _pairs(square, along[:, fast], along[:, slow], gram, fast, slow).min(1)
    criterion = [
        2 * count + num_lags * torch.log(residual.clamp(min=1e-12) / num_lags)
        for count, residual in ((2, residual_of_one), (4, residual_of_two))
    ]
    return torch.where(criterion[1] < criterion[0], TAUS[slow[pair]], FINE_TAUS[single])


def _pairs(square: Tensor, along_1: Tensor, along_2: Tensor, gram: Tensor, fast: Tensor, slow: Tensor) -> Tensor:
    """Residual sum of squares (rows, pairs) of the best b1 e1 + b2 e2 with b1, b2 >= 0 and b1 + b2 <= 1."""
    g11, g22, g12 = gram[fast, fast], gram[slow, slow], gram[fast, slow]
    determinant = g11 * g22 - g12.square()
    free_1 = (along_1 * g22 - along_2 * g12) / determinant
    free_2 = (along_2 * g11 - along_1 * g12) / determinant
    # With the sum bound to 1, one free share is left.
    share = ((along_1 - along_2 - g12 + g22) / (g11 + g22 - 2 * g12)).clamp(0, 1)
    inside = (free_1 >= 0) & (free_2 >= 0) & (free_1 + free_2 <= 1)
    b1, b2 = torch.where(inside, free_1, share), torch.where(inside, free_2, 1 - share)
    return square - 2 * (b1 * along_1 + b2 * along_2) + b1.square() * g11 + b2.square() * g22 + 2 * b1 * b2 * g12
