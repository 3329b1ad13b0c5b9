"""Where a model rests when its input is silent, and whether it stays there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import SURROGATE, Label, LabelColumn
from zoo_builder.labels.driven import Driven
from zoo_builder.labels.spectra import eigenvalues, finite_only

NUM_STARTS = 16
NUM_ITERATIONS = 30
STEP_SIZES = (1.0, 0.5, 0.25, 0.1, 0.02)
"""Shares of the Newton step that are tried; the one that leaves the smallest residual is taken."""
CONVERGED = 1e-8
"""Largest residual |F(h) - h| of any unit at a fixed point."""
SETTLED = 1e-12
"""Largest residual at which a point is left where it is."""
APART = 1e-3
"""Points are different if some unit differs by more."""


@dataclass(frozen=True, kw_only=True)
class FixedPoints(Label):
    """Number of fixed points of the silent dynamics that are found, and the share that is stable."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        how = (
            f"fixed points h = F(h, 0) found from {NUM_STARTS} driven states by {NUM_ITERATIONS} Newton steps, each "
            f"shortened where that leaves a smaller residual, without input or noise; every unit's residual is below "
            f"{CONVERGED:g}, and points differ by more than {APART:g} in some unit"
        )
        source = "Sussillo and Barak, Neural Computation 2013, with Newton steps for its descent"
        return (
            LabelColumn(name="num_fixed_points", unit="points", definition=f"Number of {how}.", source=source),
            LabelColumn(
                name="fixed_points_stable_share",
                unit="share of points",
                definition="Share with all eigenvalues of the Jacobian below 1 in absolute value of the "
                f"{how}. {SURROGATE} Null where none is found.",
                source=source,
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        starts, finite = finite_only(driven.trajectory.before[:, -1, :NUM_STARTS].contiguous())
        # One start after another where the Jacobians of all would take too much memory.
        parts = starts.split(1 if driven.is_large else NUM_STARTS, dim=1)
        found = [(*reached, _is_stable(driven, reached[0])) for reached in (find(driven, part) for part in parts)]
        points, converged, is_stable = (torch.cat(column, dim=1) for column in zip(*found, strict=True))
        chosen = first_of_each(points, converged)
        count = chosen.sum(1).double()
        stable = (chosen & is_stable).sum(1)
        columns = {"num_fixed_points": count, "fixed_points_stable_share": stable / count}
        return {name: torch.where(finite, value, torch.nan) for name, value in columns.items()}


def find(driven: Driven, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Points (models, start, state) reached from the starts, and which of them are fixed, (models, start)."""
    x, noise = _silence(driven, starts)
    points, eye = starts.contiguous(), torch.eye(starts.shape[-1], dtype=starts.dtype, device=starts.device)
    sizes = torch.tensor([0.0, *STEP_SIZES], dtype=starts.dtype, device=starts.device)
    wide_x, wide_noise = x.repeat(1, len(sizes), 1), {k: v.repeat(1, len(sizes), 1) for k, v in noise.items()}
    for _ in range(NUM_ITERATIONS):
        jacobians = driven.jacobians_at(points, x, noise)
        residual = driven.step(points, x, noise) - points
        settled = residual.abs().amax(-1) < SETTLED
        # Who has settled stays, so what happens to a model does not depend on when the others let it stop.
        if bool(settled.all()):
            break
        newton, _ = torch.linalg.solve_ex(eye - jacobians, residual[..., None])
        tried = points[:, None] + sizes[:, None, None] * newton[..., 0].nan_to_num(0, 0, 0)[:, None]
        flat = tried.flatten(1, 2)
        left = (driven.step(flat, wide_x, wide_noise) - flat).abs().amax(-1).unflatten(1, tried.shape[1:3])
        # The first is to stay, so that the residual never grows; what overflows is never taken.
        best = torch.where(settled, 0, left.nan_to_num(torch.inf).argmin(1))
        points = tried.gather(1, best[:, None, :, None].expand(-1, 1, -1, tried.shape[-1]))[:, 0]
    return points, (driven.step(points, x, noise) - points).abs().amax(-1) < CONVERGED


def first_of_each(points: Tensor, converged: Tensor) -> Tensor:
    """Which converged points (models, point) are not near an earlier one of points (models, point, state)."""
    chosen = converged.clone()
    for place in range(1, points.shape[1]):
        distance = (points[:, :place] - points[:, place : place + 1]).abs().amax(-1)
        chosen[:, place] &= ~((distance <= APART) & chosen[:, :place]).any(1)
    return chosen


def _is_stable(driven: Driven, points: Tensor) -> Tensor:
    """Whether small deviations from points (models, point, state) shrink, (models, point)."""
    x, noise = _silence(driven, points)
    jacobians, finite = finite_only(driven.jacobians_at(points, x, noise).flatten(0, 1))
    radius = eigenvalues(jacobians).abs().amax(-1)
    stable: Tensor = ((radius < 1) & finite).unflatten(0, points.shape[:2])
    return stable


def _silence(driven: Driven, points: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Inputs and noise of zero for points (models, point, state)."""
    spec = driven.family.spec
    shape = points.shape[:2]
    noise = {name: points.new_zeros(*shape, spec.axes[axis].size) for name, axis in spec.noise.items()}
    return points.new_zeros(*shape, driven.family.input_size), noise
