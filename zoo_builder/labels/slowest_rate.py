"""The rate at which the slowest deviation of a resting model decays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.forward import last_states
from weightspace.rollout.tangents import flatten
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import SURROGATE, Label, LabelColumn
from zoo_builder.labels.driven import WARM_UP, Driven
from zoo_builder.labels.spectra import spectral_radius


@dataclass(frozen=True, kw_only=True)
class SlowestRate(Label):
    """The decay rate of the slowest mode at rest, from the Jacobian without input."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return (
            LabelColumn(
                name="slowest_rate",
                unit="nats per step",
                definition="Minus the log of the largest absolute eigenvalue of the Jacobian dh(t+1)/dh(t), without "
                f"input, at the state after {WARM_UP} steps without input or noise; below 0 where deviations grow. "
                f"{SURROGATE} Null where all eigenvalues are 0: such a model forgets at once.",
                source="the slowest eigenvalue of Wang, Li and Li, ICLR 2024, arXiv 2305.19190, per step",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        family, models = driven.family, len(driven.finite)
        x = torch.zeros(models, WARM_UP, 1, family.input_size, dtype=torch.float64, device=driven.device)
        axes = family.spec.noise.items()
        noise = {name: x.new_zeros(*x.shape[:3], family.spec.axes[axis].size) for name, axis in axes}
        state = torch.func.vmap(family.initial_state)(driven.params, x.new_zeros(models, 1, 0))
        rest = last_states(family, driven.params, x, state, noise, 1, method=driven.method)
        still = {name: value[:, 0] for name, value in noise.items()}
        jacobian = driven.jacobians_at(flatten(family, rest)[:, 0], x[:, 0], still)[:, 0]
        return {"slowest_rate": -spectral_radius(jacobian, driven.method).log()}
