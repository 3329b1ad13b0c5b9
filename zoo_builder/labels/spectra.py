"""Ranks and radii of stacks of matrices, safe against matrices that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from weightspace.rollout import Method

FLAT = 1e-24
"""Share of its mean square below which the variance of a float64 number is what rounding leaves of a constant."""
SIDE_BY_SIDE = 24
"""Size up to which matrices are faster taken side by side than one by one."""


def effective_rank(weights: Tensor) -> Tensor:
    """exp of the entropy of weights (..., n) >= 0 normalised to sum 1 (Roy and Vetterli 2007); NaN if all are 0."""
    share = weights / weights.sum(-1, keepdim=True)
    rank: Tensor = torch.special.entr(share).sum(-1).exp()
    return rank


def stable_rank(squares: Tensor) -> Tensor:
    """Sum over maximum of the squared singular values (..., n); NaN if all are 0."""
    return squares.sum(-1) / squares.amax(-1)


def participation_ratio(squares: Tensor) -> Tensor:
    """Squared sum over sum of squares of the squared singular values (..., n); NaN if all are 0."""
    # Scaled first, or the squares of small numbers vanish.
    share = squares / squares.amax(-1, keepdim=True)
    return share.sum(-1) ** 2 / share.square().sum(-1)


def vary(states: Tensor, flat: float = FLAT) -> Tensor:
    """Whether states (models, sample, state) vary, (models,), by more than a share `flat` of their mean square."""
    # Scaled to 1 against overflow and underflow of the squares.
    scaled = states / states.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(states.dtype).tiny)
    return scaled.var(1, correction=0).sum(1) > flat * scaled.square().mean(1).sum(1)


def covariance(states: Tensor) -> Tensor:
    """The covariance (models, state, state) of states (models, sample, state), up to a factor per model.

    0 where states do not vary but for rounding.
    """
    centred = torch.where(vary(states)[:, None, None], states - states.mean(1, keepdim=True), 0)
    # Scaled to 1 against overflow and underflow of the squares.
    flat = centred.flatten(1)
    largest = torch.maximum(-flat.amin(1), flat.amax(1))
    centred = centred / torch.where(largest > 0, largest, 1)[:, None, None]
    return centred.transpose(1, 2) @ centred / centred.shape[1]


def has_one_direction(covariances: Tensor) -> Tensor:
    """Whether covariances (models, state, state) are of rank one within the rounding of float32, (models,)."""
    trace = covariances.diagonal(dim1=1, dim2=2).sum(1)
    return (trace > 0) & (trace.square() - covariances.square().sum((1, 2)) <= 1e-5 * trace.square())


def of_each(
    matrices: Mapping[str, Tensor], measure: Callable[[list[str], Tensor], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `measure` finds, `NAME_COLUMN` -> (models,), of several matrices (models, row, col) of each model.

    It is given the names of all matrices of one shape, and these as one stack, one after another: a call for many
    takes hardly longer than one for few.
    """
    shapes: dict[torch.Size, list[str]] = {}
    for name, tensor in matrices.items():
        shapes.setdefault(tensor.shape, []).append(name)
    found: dict[str, Tensor] = {}
    for shape, names in shapes.items():
        measured = measure(names, torch.cat([matrices[name] for name in names]))
        for column, values in measured.items():
            found |= {f"{name}_{column}": own for name, own in zip(names, values.split(shape[0]), strict=True)}
    return found


def matrix_ranks(
    matrices: Tensor, method: Method = "stacked", *, are_covariances: Tensor | None = None
) -> dict[str, Tensor]:
    """The three ranks (models,) of matrices (models, to, from), each over the smaller size; NaN where not finite.

    Of covariances, marked in `are_covariances` (models,), bool, the singular values are squares already.
    """
    usable, finite = finite_only(matrices)
    values = nonzero(singular_values(usable, method))
    size, squares = values.shape[-1], values.square()
    if are_covariances is not None:
        squares = torch.where(are_covariances[:, None], values, squares)
    ranks = {
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(squares),
        "participation_ratio": participation_ratio(squares),
    }
    return {name: torch.where(finite, rank / size, torch.nan) for name, rank in ranks.items()}


def nonzero(values: Tensor) -> Tensor:
    """Singular values (models, value), largest first, without what rounding leaves of a zero: that is no rank."""
    return torch.where(values > values[:, :1] * 1e-12, values, 0)


def singular_values(matrices: Tensor, method: Method) -> Tensor:
    """Singular values (models, value), largest first, of finite matrices (models, row, col)."""
    if method == "native" and min(matrices.shape[1:]) <= SIDE_BY_SIDE:
        from weightspace.rollout.native.matrices import native_singular_values

        return native_singular_values(matrices)
    return or_nan(torch.linalg.svdvals, matrices)


def spectral_radius(matrices: Tensor, method: Method = "stacked") -> Tensor:
    """Largest absolute eigenvalue (models,) of square matrices (models, n, n); NaN where not finite."""
    usable, finite = finite_only(matrices)
    if method == "native" and matrices.shape[1] <= SIDE_BY_SIDE:
        from weightspace.rollout.native.matrices import native_spectral_radii

        radius = native_spectral_radii(usable)
    else:
        radius = eigenvalues(usable).abs().amax(-1)
    return torch.where(finite, radius, torch.nan)


def eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues (..., n), complex, of matrices (..., n, n), where these are; found on the CPU.

    For matrices without symmetry GPUs have no routine that takes many small ones at once. NaN of a matrix for which the
    routine does not converge, as of numbers some hundred orders of magnitude apart.
    """
    return or_nan(torch.linalg.eigvals, matrices.cpu()).to(matrices.device)


def or_nan(routine: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """Results of a routine on matrices (..., row, col), NaN of those for which it does not converge."""
    try:
        return routine(matrices)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # public, but not in its list of names
        if matrices.dim() == 2:
            return torch.full_like(routine(torch.zeros_like(matrices)), torch.nan)
        return torch.stack([or_nan(routine, each) for each in matrices])


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
