"""Autocorrelations of units over repeated trials, and the exponentials that fit them."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_LAG = 30
"""Last lag of the fit: at larger ones the bias of an autocorrelation from few samples shows."""
TAUS = torch.logspace(-0.5, 2, 56, dtype=torch.float64)
"""Candidates for two time scales, from 0.3 to 100 steps; each is 11% above the one before."""
FINE_TAUS = torch.logspace(-0.5, 2, 1101, dtype=torch.float64)
"""Candidates for one time scale, so near each other that a second exponential never makes up for their distance."""
ROWS_TOGETHER = 64
"""Autocorrelations that are fitted at once, so that the table of all pairs of candidates stays small."""


def autocorrelations(states: Tensor) -> Tensor:
    """Autocorrelation (models, unit, lag), lags 0 to LARGEST_LAG, of states (models, time, group, trial, unit).

    Trials of a group, at least two, differ in their random numbers alone. Autocovariances about the mean of the group
    at each step, each divided by its number of products, are averaged over trials and groups. That mean takes part of
    the variance, the same at every lag; the mean over the time of a trial would take more of the slow part, and short
    trials would seem to forget too soon.
    """
    # Model by model: large intermediate results cost more than the arithmetic.
    covariance = torch.stack([_autocovariances(trajectories) for trajectories in states])
    # Rounding of what is the same in all trials is no variance.
    least = 1e-20 * states.square().mean((1, 2, 3))[..., None]
    varies = covariance[..., :1] > least
    return torch.where(varies, covariance / torch.where(varies, covariance[..., :1], 1), torch.nan)


def _autocovariances(states: Tensor) -> Tensor:
    num_steps = states.shape[0]
    # Zero padding: else the last steps would wrap round to the first ones.
    size = 1 << (num_steps + LARGEST_LAG - 1).bit_length()
    series = (states - states.mean(2, keepdim=True)).flatten(1, 2)
    power = torch.fft.rfft(series.permute(2, 1, 0).contiguous(), size).abs().square().mean(1)
    sums = torch.fft.irfft(power, size)[:, : LARGEST_LAG + 1]
    means: Tensor = sums / (num_steps - torch.arange(LARGEST_LAG + 1, device=states.device))
    return means


def fitted(correlations: Tensor) -> Tensor:
    """Time scale (rows,) of autocorrelations (rows, lag): of one exponential, or the slower one of two.

    a e^(-t/tau) and a (c e^(-t/tau1) + (1 - c) e^(-t/tau2)), a and c from 0 to 1, are fitted by least squares over
    TAUS; the better one by Akaike's criterion counts, 2 parameters + lags * log(squared residuals). A lag counts as
    (1 - r) / (1 + r), r the correlation of neighbouring residuals of the single exponential: errors of an
    autocorrelation are alike at neighbouring lags, and if each counted as one, two exponentials would follow the errors
    of one in up to three quarters of simulated processes. Rows that are not finite give NaN.
    """
    finite = correlations.isfinite().all(1)
    parts = torch.where(finite[:, None], correlations, 0.0).split(ROWS_TOGETHER)
    tau = torch.cat([_fitted(part) for part in parts])
    return torch.where(finite, tau, torch.nan)


def _fitted(y: Tensor) -> Tensor:
    num_lags = y.shape[1]
    lags = torch.arange(num_lags, dtype=y.dtype, device=y.device)[:, None]
    fine, coarse = FINE_TAUS.to(y.device), TAUS.to(y.device)
    square = y.square().sum(1, keepdim=True)
    basis = torch.exp(-lags / fine)
    norm, along = basis.square().sum(0), y @ basis
    scale = (along / norm).clamp(0, 1)
    residual_of_one, single = (square - 2 * scale * along + scale.square() * norm).min(1)
    residuals = y - scale.gather(1, single[:, None]) * basis.T[single]
    effective_lags = num_lags * _independent_share(residuals)
    basis = torch.exp(-lags / coarse)
    gram, along = basis.T @ basis, y @ basis
    fast, slow = torch.triu_indices(len(coarse), len(coarse), 1, device=y.device)
    residual_of_two, pair = _pairs(square, along[:, fast], along[:, slow], gram, fast, slow).min(1)
    one, two = (
        2 * count + effective_lags * torch.log(residual.clamp(min=1e-12))
        for count, residual in ((2, residual_of_one), (4, residual_of_two))
    )
    return torch.where(two < one, coarse[slow[pair]], fine[single])


def _independent_share(residuals: Tensor) -> Tensor:
    """Share (rows,) of residuals (rows, lag) that counts if neighbours are alike."""
    alike = (residuals[:, 1:] * residuals[:, :-1]).sum(1) / residuals.square().sum(1).clamp(min=1e-12)
    share: Tensor = (1 - alike.clamp(min=0)) / (1 + alike.clamp(min=0))
    return share


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
