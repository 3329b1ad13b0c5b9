"""Where a model rests when its input is silent, and whether it stays there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
        located = locate(driven)
        count = located.chosen.sum(1).double()
        stable = (located.chosen & located.stable).sum(1)
        known = (located.eigenvalues.isfinite().all(-1) | ~located.chosen).all(1)
        share = torch.where(known, stable / count, torch.nan)
        found = {"num_fixed_points": count, "fixed_points_stable_share": share}
        return {name: torch.where(located.finite, value, torch.nan) for name, value in found.items()}


class Located(NamedTuple):
    """Where the search from each start of each model ended."""

    points: Tensor
    """States (models, start, state), side by side in the order of the spec."""
    speeds: Tensor
    """||F(h) - h|| at the points (models, start), per step."""
    eigenvalues: Tensor
    """Eigenvalues (models, start, state), complex, of the Jacobian dF/dh at the points."""
    chosen: Tensor
    """Whether a point is a fixed one, and none before it is the same, (models, start)."""
    stable: Tensor
    """Whether small deviations from a point shrink, (models, start)."""
    finite: Tensor
    """Whether the model has finite params and states to start from, (models,)."""


@torch.no_grad()
def locate(driven: Driven, held: Tensor | None = None, starts: Tensor | None = None) -> Located:
    """Fixed points h = F(h, x) found from states (start, state), for an input x (input,) that is held still.

    Unless given, the states are driven ones, and the input is 0.
    """
    if starts is None:
        starts = driven.trajectory.before[:, -1, :NUM_STARTS]
    else:
        starts = starts.to(driven.device, torch.float64).expand(len(driven.finite), -1, -1)
    starts, finite = finite_only(starts.contiguous())
    # One start after another where the Jacobians of all would take too much memory.
    parts = starts.split(1 if driven.is_large else max(starts.shape[1], 1), dim=1)
    columns = zip(*(_reached(driven, part, held) for part in parts), strict=True)
    points, converged, speeds, values, usable = (torch.cat(column, dim=1) for column in columns)
    finite = finite & driven.finite
    chosen = first_of_each(points, converged) & finite[:, None]
    return Located(points, speeds, values, chosen, (values.abs().amax(-1) < 1) & usable, finite)


def _reached(driven: Driven, starts: Tensor, held: Tensor | None) -> tuple[Tensor, ...]:
    """Points reached from starts, which are fixed, their speeds, and eigenvalues with whether these are finite."""
    points, converged = find(driven, starts, held)
    x, noise = _still(driven, points, held)
    jacobians, usable = finite_only(driven.jacobians_at(points, x, noise).flatten(0, 1))
    values = eigenvalues(jacobians).unflatten(0, points.shape[:2])
    speeds = (driven.step(points, x, noise) - points).norm(dim=-1)
    return points, converged, speeds, values, usable.unflatten(0, points.shape[:2])


def find(driven: Driven, starts: Tensor, held: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Points (models, start, state) reached from the starts, and which of them are fixed, (models, start)."""
    x, noise = _still(driven, starts, held)
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


def _still(driven: Driven, points: Tensor, held: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The input that is held, for points (models, point, state), and noise of zero."""
    spec = driven.family.spec
    shape = points.shape[:2]
    noise = {name: points.new_zeros(*shape, spec.axes[axis].size) for name, axis in spec.noise.items()}
    x = points.new_zeros(*shape, driven.family.input_size)
    return x if held is None else x + held.to(x), noise
