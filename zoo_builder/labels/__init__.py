"""One file per group of measurements that a zoo stores with its models; a new file here is found by its class name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from weightspace.discovery import concrete_subclasses, load_from
from weightspace.families import Family
from weightspace.rollout import Method
from weightspace.spec import Params, WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import JACOBIAN_STEPS, LANES, Driven
from zoo_builder.labels.inputs import SEQUENCES_TOGETHER, Inputs
from zoo_builder.tasks import Task

__all__ = ["Driven", "Inputs", "Label", "LabelColumn", "available", "columns", "load", "measure"]

MODELS_TOGETHER: dict[Method, int] = {"native": 64, "stacked": 32, "sequential": 32}
"""How many models are measured at once on the CPU: enough to hide what a call costs, few enough for its caches."""
CUDA_BYTES = 4 * 2**30
"""What the Jacobians, or the states of a rollout, of all models that are measured together may take on CUDA."""


def available() -> dict[str, type[Label]]:
    """Every concrete label by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Label)


def load(name: str, fields: Mapping[str, Any]) -> Label:
    """The label with this class name and these fields."""
    return load_from(available(), "label", name, fields)


def columns(names: Iterable[str], specs: Iterable[WeightSpec]) -> dict[str, LabelColumn]:
    """What the labels `names` store for families with these effective specs, by column name, sorted."""
    found = {column.name: column for spec in specs for label in _loaded(tuple(names)) for column in label.columns(spec)}
    return dict(sorted(found.items()))


@lru_cache(maxsize=64)
def _loaded(names: tuple[str, ...]) -> tuple[Label, ...]:
    # They are asked for again with every stack of models.
    return tuple(load(name, {}) for name in names)


def measure(
    names: Sequence[str],
    family: Family,
    params: Params,
    task: Task | None,
    values: Mapping[str, Tensor],
    seed: int,
    model_ids: Sequence[str],
    method: Method = "stacked",
    given: dict[int, Inputs] | None = None,
) -> dict[str, Tensor]:
    """The labels `names` of stacked params (models, ...), measured on the device where these are.

    Each column is (models,), float64, on the CPU, NaN where it does not apply. `values[field]` (models,) are the
    models' own values of the task's varying fields. A model's labels depend on its own params and values, on `seed`
    and on its id alone. `given`, empty at first, lets calls for several snapshots of the same models share inputs.
    """
    labels = _loaded(tuple(names))
    expected = columns(names, [family.effective_spec])
    pieces = []
    together = _models_together(family, task, next(iter(params.values())).device, method)
    for first in range(0, len(model_ids), together):
        chosen = slice(first, first + together)
        own_params = {name: tensor[chosen] for name, tensor in params.items()}
        own_values = {name: tensor[chosen] for name, tensor in values.items()}
        known = None if given is None else given.get(first)
        driven = Driven(family, own_params, task, own_values, seed, model_ids[chosen], method, known)
        if given is not None:
            given[first] = driven.inputs
        pieces.append(_measure(labels, driven))
    return {name: torch.cat([piece[name] for piece in pieces]) for name in expected}


def _models_together(family: Family, task: Task | None, device: torch.device, method: Method) -> int:
    """How many models are measured at once: on CUDA as many as fit, with their Jacobians or their longest rollouts."""
    if device.type == "cpu":
        return MODELS_TOGETHER[method]
    size = family.spec.state_size
    states = 0 if task is None else SEQUENCES_TOGETHER * task.num_steps * size
    return max(CUDA_BYTES // (8 * max(JACOBIAN_STEPS * LANES * size**2, states)), 2)


def _measure(labels: Sequence[Label], driven: Driven) -> dict[str, Tensor]:
    """Every column (models,) on the CPU, NaN where it is not finite."""
    with torch.no_grad():
        measured = {name: value for label in labels for name, value in label.measure(driven).items()}
    found = {}
    for name, column in measured.items():
        usable = torch.where(driven.finite & column.isfinite(), column.to(torch.float64), torch.nan)
        found[name] = usable.cpu()[: driven.num_models]
    return found
