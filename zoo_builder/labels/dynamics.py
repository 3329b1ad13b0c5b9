"""Stability of a model's dynamics: spectral radii and the largest Lyapunov exponent."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import SURROGATE, Label, LabelColumn, in_words, recurrent_matrices, rows_of_recurrent
from zoo_builder.labels.driven import DRIVE, JACOBIANS, Driven
from zoo_builder.labels.spectra import of_each, spectral_radius


@dataclass(frozen=True, kw_only=True)
class Dynamics(Label):
    """Spectral radius of the mean recurrent Jacobian and of the recurrent weights; largest Lyapunov exponent."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        found = [
            LabelColumn(
                name="largest_lyapunov",
                unit="nats per step",
                definition=f"Mean log growth of a tangent vector carried along, rescaled at every step, on {DRIVE}. "
                f"{SURROGATE} Null where a vector vanishes: the exponent is then minus infinity.",
                source="Benettin, Galgani, Giorgilli and Strelcyn, Meccanica 1980",
            ),
            _radius("spectral_radius", f"the mean of the {JACOBIANS}"),
        ]
        for prefix, row in rows_of_recurrent(spec).items():
            found.append(_radius(f"{prefix}_spectral_radius", f"{in_words(row)} as the function uses it"))
        return tuple(found)

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        matrices = {"jacobian": driven.measured.mean_jacobian} | recurrent_matrices(driven)
        found = of_each(matrices, lambda _, stack: {"spectral_radius": spectral_radius(stack, driven.method)})
        found["spectral_radius"] = found.pop("jacobian_spectral_radius")
        found["largest_lyapunov"] = driven.measured.growth.double().mean((1, 2))
        return found


def _radius(name: str, of: str) -> LabelColumn:
    definition = f"Largest absolute eigenvalue of {of}."
    return LabelColumn(name=name, unit="1", definition=definition, source="definition")
