"""Ranks and radii of stacks of matrices, safe against matrices that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(weights: Tensor) -> Tensor:
    """exp of the entropy of weights (..., n) >= 0 normalised to sum 1 (Roy and Vetterli 2007); NaN if all are 0."""
    share = weights / weights.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def stable_rank(squares: Tensor) -> Tensor:
    """Sum over maximum of the squared singular values (..., n); NaN if all are 0."""
    return squares.sum(-1) / squares.amax(-1)


def participation_ratio(squares: Tensor) -> Tensor:
    """Squared sum over sum of squares of the squared singular values (..., n); NaN if all are 0."""
    # Scaled first, or the squares of small numbers vanish.
    share = squares / squares.amax(-1, keepdim=True)
    return share.sum(-1) ** 2 / share.square().sum(-1)


def matrix_ranks(matrices: Tensor) -> dict[str, Tensor]:
    """The three ranks (models,) of matrices (models, to, from), each over the smaller size; NaN where not finite."""
    usable, finite = finite_only(matrices)
    values = torch.linalg.svdvals(usable)
    # What rounding leaves of a zero is no rank.
    values = torch.where(values > values[:, :1] * 1e-12, values, 0)
    size = values.shape[-1]
    ranks = {
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(values.square()),
        "participation_ratio": participation_ratio(values.square()),
    }
    return {name: torch.where(finite, rank / size, torch.nan) for name, rank in ranks.items()}


def spectral_radius(matrices: Tensor) -> Tensor:
    """Largest absolute eigenvalue (models,) of square matrices (models, n, n); NaN where not finite."""
    usable, finite = finite_only(matrices)
    return torch.where(finite, eigenvalues(usable).abs().amax(-1), torch.nan)


def eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues (..., n), complex, of matrices (..., n, n), where these are; found on the CPU.

    For matrices without symmetry GPUs have no routine that takes many small ones at once.
    """
    return torch.linalg.eigvals(matrices.cpu()).to(matrices.device)


def finite_only(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices (models, ...) with zeros in place of those that are not finite, and which are (models,).

    One such matrix would make an eigenvalue routine refuse the whole stack.
    """
    flat = matrices.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    # NaN is the extreme of all that it is among, so two numbers tell of all the others.
    finite = low.isfinite() & high.isfinite()
    if bool(finite.all()):
        return matrices, finite
    return torch.where(finite.reshape(-1, *[1] * (matrices.dim() - 1)), matrices, 0), finite
