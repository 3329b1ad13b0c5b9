"""The whole Lyapunov spectrum of models whose units remember only themselves, from the Jacobian of each unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.sensitivities import unit_jacobians
from weightspace.rollout.tangents import unflatten
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import SURROGATE, Label, LabelColumn
from zoo_builder.labels.driven import DRIVE, Driven


@dataclass(frozen=True, kw_only=True)
class UnitLyapunov(Label):
    """Largest, mean and smallest Lyapunov exponent of a diagonal family, and the time constant of its median unit.

    Such a Jacobian has a block for each unit, a single number where a unit has one state that steps read; the
    exponents of the units are those of the model (Irie, Gopalakrishnan and Schmidhuber, ICLR 2024, arXiv 2305.19044,
    use this Jacobian for gradients). Other families have none of these columns.
    """

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        if spec.recurrence != "diagonal":
            return ()
        of = (
            "of the Lyapunov exponents of all units, each from the Jacobian of the unit's own states that steps read, "
            f"by QR decomposition at every step, mean over {DRIVE}; minus infinity where a unit forgets at once"
        )
        source = "Benettin, Galgani, Giorgilli and Strelcyn, Meccanica 1980, unit by unit"
        found = [
            LabelColumn(
                name=f"unit_lyapunov_{which}",
                unit="nats per step",
                definition=f"The {which} {of}. {SURROGATE} Null where that is minus infinity.",
                source=source,
            )
            for which in ("largest", "mean", "smallest")
        ]
        found.append(
            LabelColumn(
                name="unit_time_constant",
                unit="steps",
                definition=f"-1 / l, l the median {of}, a unit's largest counted. {SURROGATE} Null where l is minus "
                "infinity, or 0 or more.",
                source=source,
            )
        )
        return tuple(found)

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        if driven.family.effective_spec.recurrence != "diagonal":
            return {}
        exponents = unit_exponents(driven)
        median = exponents[:, 0].quantile(0.5, dim=1)
        return {
            "unit_lyapunov_largest": exponents.amax((1, 2)),
            "unit_lyapunov_mean": exponents.mean((1, 2)),
            "unit_lyapunov_smallest": exponents.amin((1, 2)),
            "unit_time_constant": torch.where(median.isfinite() & (median < 0), -1 / median, torch.nan),
        }


def unit_exponents(driven: Driven) -> Tensor:
    """Lyapunov exponents (models, exponent, unit) of each unit, largest first, nats per step; -inf where it forgets."""
    trajectory, family = driven.trajectory, driven.family
    frame: list[Tensor] | None = None
    growth = []
    for t in range(trajectory.x.shape[1]):
        state = unflatten(family, trajectory.before[:, t])
        noise = {name: value[:, t] for name, value in trajectory.noise.items()}
        blocks = unit_jacobians(family, driven.params, state, trajectory.x[:, t], noise)
        moved = list(blocks.unbind(3)) if frame is None else [(blocks * q[:, :, None]).sum(3) for q in frame]
        frame, stretch = _orthonormal(moved)
        growth.append(stretch.log())
    return torch.stack(growth).mean((0, 2)).sort(dim=1, descending=True).values


def _orthonormal(vectors: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Gram-Schmidt of the vectors (models, lane, state, unit) of each unit: the frame, and the lengths (models, lane,
    vector, unit) that were left."""
    frame: list[Tensor] = []
    lengths = []
    for vector in vectors:
        for q in frame:
            vector = vector - (q * vector).sum(2, keepdim=True) * q
        length = vector.square().sum(2).sqrt()
        lengths.append(length)
        # A vector that vanished stays 0: its exponent is then minus infinity.
        frame.append(vector / torch.where(length > 0, length, 1)[:, :, None])
    return frame, torch.stack(lengths, dim=2)
