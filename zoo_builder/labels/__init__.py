"""One file per group of measurements that a zoo stores with its models; a new file here is found by its class name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from weightspace import families
from weightspace.components.discovery import concrete_subclasses, load_from
from weightspace.families import Family
from weightspace.rollout import Method
from weightspace.spec import Params, WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import JACOBIAN_STEPS, LANES, Driven
from zoo_builder.labels.inputs import SEQUENCES_TOGETHER
from zoo_builder.tasks import Task

__all__ = ["Driven", "Label", "LabelColumn", "available", "columns", "load", "measure"]

MODELS_TOGETHER: dict[Method, int] = {"native": 64, "stacked": 32, "sequential": 32}
"""How many models are measured at once on the CPU: enough to hide what a call costs, few enough for its caches."""
CPU_BYTES, CUDA_BYTES = 2**28, 4 * 2**30
"""What the Jacobians, or on CUDA the states of a rollout, of all that is measured together may take."""


def available() -> dict[str, type[Label]]:
    """Every concrete label by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Label)


def load(name: str, fields: Mapping[str, Any]) -> Label:
    """The label with this class name and these fields; the name of a column is told which label measures it."""
    if isinstance(name, str) and name not in available():
        measuring = [label for label, kind in available().items() if name in _columns_on_examples(kind())]
        if measuring:
            raise ValueError(f"'{name}' is a column of the label {measuring[0]}; name that: `{measuring[0]}`.")
    return load_from(available(), "label", name, fields)


def _columns_on_examples(label: Label) -> set[str]:
    found: set[str] = set()
    for family in families.available().values():
        # Some labels are for few families only.
        with contextlib.suppress(ValueError):
            found |= {column.name for column in label.columns(family.examples()[0].effective_spec)}
    return found


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
) -> dict[str, Tensor]:
    """The labels `names` of stacked params (models, ...), measured on the device where these are.

    Each column is (models,), float64, on the CPU, NaN where it does not apply. `values[field]` (models,) are the
    models' own values of the task's varying fields. A model's labels depend on its own params and values, on `seed`
    and on its id alone.

    Several snapshots of the models may come one after another, as params and columns (snapshots * models, ...): what
    models are driven by is then drawn only once.
    """
    labels = _loaded(tuple(names))
    expected = columns(names, [family.effective_spec])
    first = next(iter(params.values()))
    snapshots = len(first) // len(model_ids)
    own = {name: tensor.unflatten(0, (snapshots, len(model_ids))) for name, tensor in params.items()}
    models, at_once = _together(family, task, first.device, method, len(model_ids))
    found = {name: torch.empty(snapshots, len(model_ids), dtype=torch.float64) for name in expected}
    for low in range(0, len(model_ids), models):
        some, inputs = slice(low, low + models), None
        own_models = {name: tensor[some] for name, tensor in values.items()}, seed, model_ids[some]
        for snapshot in range(0, snapshots, at_once):
            part = {k: v[snapshot : snapshot + at_once, some] for k, v in own.items()}
            driven = Driven(family, _side_by_side(part), task, *own_models, method, inputs)
            inputs = driven.inputs
            measured = _measure(labels, driven)
            for name, column in found.items():
                column[snapshot : snapshot + at_once, some] = measured[name].unflatten(0, (-1, len(own_models[2])))
    return {name: column.flatten() for name, column in found.items()}


def _side_by_side(params: Params) -> Params:
    """Params (snapshots, models, ...) as (snapshots * models, ...)."""
    return {name: tensor.flatten(0, 1) for name, tensor in params.items()}


def _together(
    family: Family, task: Task | None, device: torch.device, method: Method, num_models: int
) -> tuple[int, int]:
    """How many models, and how many snapshots of these, are measured at once: as many as fit, or as the CPU likes."""
    size = family.spec.state_size
    jacobians = JACOBIAN_STEPS * LANES * size**2
    if device.type == "cpu":
        models = MODELS_TOGETHER[method]
        return models, max(CPU_BYTES // (8 * jacobians * models), 1) if method == "native" else 1
    states = 0 if task is None else SEQUENCES_TOGETHER * task.num_steps * size
    fitting = max(CUDA_BYTES // (8 * max(jacobians, states)), 2)
    models = min(fitting, num_models)
    return models, fitting // models


def _measure(labels: Sequence[Label], driven: Driven) -> dict[str, Tensor]:
    """Every column (models,) on the CPU, NaN where it is not finite."""
    with torch.no_grad():
        measured = {name: value for label in labels for name, value in label.measure(driven).items()}
    if not measured:
        return {}
    columns = torch.stack([column.to(torch.float64) for column in measured.values()])
    usable = torch.where(driven.finite & columns.isfinite(), columns, torch.nan)
    return dict(zip(measured, usable.cpu()[:, : driven.num_models], strict=True))
