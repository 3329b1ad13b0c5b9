"""The Lyapunov spectrum: how volumes of every dimension grow along a driven trajectory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import SURROGATE, Label, LabelColumn
from zoo_builder.labels.driven import DRIVE, WINDOW, Driven
from zoo_builder.labels.spectra import finite_only

MAX_STORED = 4
MAX_EXPONENTS = 16
"""Number of exponents computed, the state size where that is smaller."""
SPECTRUM_TRAJECTORIES = 8
ALIGNING = 16
"""First steps of the window, in which directions turn towards those that grow."""
VANISHED = 1e-13
"""A direction that a step stretches by less than this share of the most stretched one is lost in rounding: vanished."""


@dataclass(frozen=True, kw_only=True)
class LyapunovSpectrum(Label):
    """The largest Lyapunov exponents, the number of positive ones, and the Kaplan-Yorke dimension."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        how = (
            f"by QR decomposition at every step, mean over {SPECTRUM_TRAJECTORIES} trajectories and the last "
            f"{WINDOW - ALIGNING} steps of {DRIVE}"
        )
        source = (
            "Benettin, Galgani, Giorgilli and Strelcyn, Meccanica 1980; Engelken et al., Physical Review Research 2023"
        )
        found = [
            LabelColumn(
                name=f"lyapunov_{place}",
                unit="nats per step",
                definition=f"Lyapunov exponent {place}, largest first, {how}. "
                f"{SURROGATE} Null where its direction or an earlier one vanishes.",
                source=source,
            )
            for place in range(1, min(MAX_STORED, spec.state_size) + 1)
        ]
        among = f"among the first {MAX_EXPONENTS} Lyapunov exponents l(1) >= l(2) ..., {how}"
        found.append(
            LabelColumn(
                name="num_positive_lyapunov",
                unit="exponents",
                definition=f"Number of exponents above 0 {among}. {SURROGATE}",
                source=source,
            )
        )
        found.append(
            LabelColumn(
                name="kaplan_yorke_dimension",
                unit="dimensions",
                definition="j + (l(1) + ... + l(j)) / |l(j+1)|, j the largest for which the sum is not negative, "
                f"{among}; the state size if no sum is negative, null if that takes more exponents. {SURROGATE}",
                source="Kaplan and Yorke, Functional Differential Equations and Approximation of Fixed Points, 1979",
            )
        )
        return tuple(found)

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        exponents, finite = spectrum(driven)
        size = driven.family.spec.state_size
        found = {f"lyapunov_{i + 1}": exponents[:, i] for i in range(min(MAX_STORED, size))}
        found["num_positive_lyapunov"] = (exponents > 0).sum(1).double()
        found["kaplan_yorke_dimension"] = kaplan_yorke(exponents, size)
        return {name: torch.where(finite, value, torch.nan) for name, value in found.items()}


def spectrum(driven: Driven) -> tuple[Tensor, Tensor]:
    """Exponents (models, exponent), largest first, -inf where directions vanish, and which models' are finite."""
    trajectory = driven.trajectory
    before, finite = finite_only(trajectory.before[:, :, :SPECTRUM_TRAJECTORIES])
    size = before.shape[-1]
    count = min(size, MAX_EXPONENTS)
    draws = driven.streams("lyapunov").normal(SPECTRUM_TRAJECTORIES, size, count, dtype=torch.float64)
    q = torch.linalg.qr(draws).Q
    growth, alive = [], torch.ones_like(draws[..., 0, :], dtype=torch.bool)
    for t in range(WINDOW):
        x = trajectory.x[:, t, :SPECTRUM_TRAJECTORIES].contiguous()
        noise = {name: value[:, t, :SPECTRUM_TRAJECTORIES].contiguous() for name, value in trajectory.noise.items()}
        directions = q.permute(0, 3, 1, 2).contiguous()
        moved, usable = finite_only(driven.push(before[:, t].contiguous(), x, noise, directions))
        finite = finite & usable
        q, r = torch.linalg.qr(moved.permute(0, 2, 3, 1))
        stretch = r.diagonal(dim1=-2, dim2=-1).abs()
        # What a decomposition puts in the place of a vanished direction is rounding's choice: it and those after it,
        # whose volumes have vanished with it, stay so.
        alive = (alive & (stretch > VANISHED * stretch.amax(-1, keepdim=True))).to(torch.int64).cumprod(-1).bool()
        stretch = torch.where(alive, stretch, 0)
        if t >= ALIGNING:
            growth.append(stretch.log())
    return torch.stack(growth).mean((0, 2)).sort(dim=1, descending=True).values, finite


def kaplan_yorke(exponents: Tensor, state_size: int) -> Tensor:
    """Kaplan-Yorke dimension (models,) of exponents (models, exponent), largest first; NaN if it takes more of them."""
    sums = exponents.cumsum(1)
    held = (sums >= 0).to(torch.int64).cumprod(1).sum(1)
    count = exponents.shape[1]
    padded = torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1)
    reached = padded.gather(1, held[:, None])[:, 0]
    following = exponents.gather(1, held.clamp(max=count - 1)[:, None])[:, 0]
    within = held + reached / following.abs()
    whole = torch.full_like(within, float(count) if count == state_size else torch.nan)
    return torch.where(held < count, within, whole)
