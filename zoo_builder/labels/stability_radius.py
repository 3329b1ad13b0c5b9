"""How far a model's params may move before it fails its task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.captured import mapped
from weightspace.rollout.forward import last_outputs
from weightspace.spec import Params, WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import Driven

SIZES = tuple(1e-3 * 2**exponent for exponent in range(10))
"""Norms of perturbations, from 0.001 to 0.512."""
PERTURBATIONS = 3
FACTOR = 10.0
SEQUENCES = 32


@dataclass(frozen=True, kw_only=True)
class StabilityRadius(Label):
    """The largest perturbation of the params under which the task's loss stays within ten times its own."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return (
            LabelColumn(
                name="stability_radius",
                unit="norm of each tensor's change",
                definition=f"Largest beta among 0, {SIZES[0]:g} and its doubles up to {SIZES[-1]:g} up to which, with "
                f"every trained tensor moved by a random matrix of norm beta, the worst loss of {PERTURBATIONS} such "
                f"moves is at most {FACTOR:g} times the model's own, on {SEQUENCES} held-out sequences of its own "
                "task. Null where there is no task.",
                source="the perturbation error of Wang, Li and Li, ICLR 2024, arXiv 2305.19190",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        if driven.task is None:
            return {"stability_radius": driven.not_applicable}
        own = _loss(driven, driven.params)
        holds, radius = own.isfinite(), torch.zeros_like(own)
        directions = [_directions(driven, number) for number in range(PERTURBATIONS)]
        for size in SIZES:
            for direction in directions:
                moved = {name: driven.params[name] + size * move for name, move in direction.items()}
                # NaN is not at most anything: a model that overflows does not hold.
                holds = holds & (_loss(driven, {**driven.params, **moved}) <= FACTOR * own)
            radius = torch.where(holds, size, radius)
            if not bool(holds.any()):
                break
        return {"stability_radius": torch.where(own.isfinite(), radius, torch.nan)}


def _directions(driven: Driven, number: int) -> Params:
    """A random direction of length 1 of every trained tensor (models, ...)."""
    streams, spec, found = driven.streams(f"stability/{number}"), driven.family.spec, {}
    for name in spec.trained:
        drawn = streams.normal(*spec.shape(name), dtype=torch.float64)
        length = drawn.flatten(1).square().sum(1).sqrt()
        found[name] = drawn / length.reshape(-1, *[1] * (drawn.dim() - 1))
    return found


def _loss(driven: Driven, params: Params) -> Tensor:
    """The loss (models,) with other params on the first held-out sequences."""
    assert driven.task is not None
    batch, noise = mapped(next(iter(driven.inputs.batches("test"))), driven.at_every_snapshot)
    few = batch.narrow(0, SEQUENCES)
    x, start, noise = mapped(
        (few.x, few.start, {name: value.narrow(2, 0, SEQUENCES) for name, value in noise.items()}), torch.Tensor.double
    )
    scored = batch.target.shape[1]
    outputs = last_outputs(driven.family, params, x, start, noise, scored, method=driven.method)
    return driven.task.loss(outputs, few).double()
