"""One file per group of measurements that a zoo stores with its models; a new file here is found by its class name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace import families
from weightspace.components.discovery import concrete_subclasses, load_from
from weightspace.families import Family
from weightspace.rollout import Method
from weightspace.spec import Params, WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import MOST_BYTES, Driven, jacobian_bytes
from zoo_builder.labels.inputs import SEQUENCES_TOGETHER
from zoo_builder.members import MULTIPLE, Members
from zoo_builder.tasks import Task

__all__ = ["Driven", "Label", "LabelColumn", "available", "columns", "in_parts", "load", "measure"]

MODELS_TOGETHER: dict[Method, int] = {"native": 64, "stacked": 32, "sequential": 32}
"""Models measured at once on the CPU: enough to hide the cost of a call, few enough for its caches."""
CPU_BYTES, CUDA_BYTES = 2**28, 4 * 2**30
"""Bytes of the Jacobians of a chunk that are fast on the CPU, and most on CUDA, there of its rollout's states, too."""


def available() -> dict[str, type[Label]]:
    """Every concrete label by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Label)


def load(name: str, fields: Mapping[str, Any]) -> Label:
    """The label with this class name and these fields; the refusal of a column's name says which label measures it."""
    if isinstance(name, str) and (measuring := measuring_column(name)) != name:
        raise ValueError(f"'{name}' is a column of the label {measuring}; name that: `{measuring}`.")
    return load_from(available(), "label", name, fields)


def measuring_column(name: str) -> str:
    """The name of the label that has a column of this name; any other name, such as that of a label, stays."""
    if name in available():
        return name
    measuring = [label for label, kind in available().items() if name in _columns_on_examples(kind())]
    return measuring[0] if measuring else name


def _columns_on_examples(label: Label) -> set[str]:
    names: set[str] = set()
    for family in families.available().values():
        # A label may be for a few families only.
        with contextlib.suppress(ValueError):
            names |= {column.name for column in label.columns(family.examples()[0].effective_spec)}
    return names


def columns(names: Iterable[str], specs: Iterable[WeightSpec]) -> dict[str, LabelColumn]:
    """The columns of the labels `names` for families with these effective specs, by name, sorted.

    ValueError where a name means one thing in one family and another in another.
    """
    found: dict[str, LabelColumn] = {}
    for column in (column for spec in specs for label in _loaded(tuple(names)) for column in label.columns(spec)):
        if found.setdefault(column.name, column) != column:
            raise ValueError(
                f"The label column '{column.name}' has two definitions: {found[column.name].definition} "
                f"{column.definition} Give the tensors of one of the families other names."
            )
    return dict(sorted(found.items()))


@lru_cache(maxsize=64)
def _loaded(names: tuple[str, ...]) -> tuple[Label, ...]:
    # Cached: every stack of models asks for them again.
    return tuple(load(name, {}) for name in names)


def measure(
    names: Sequence[str],
    family: Family,
    params: Params,
    task: Task | None,
    members: Members,
    method: Method = "stacked",
) -> dict[str, Tensor]:
    """The labels `names` of stacked params (models, ...), measured on the device where these are.

    Each column is (models,), float64, on the CPU, NaN where it does not apply. Of `members` the values of the task's
    varying fields, the seed and the ids are read: a model's labels depend on these and on its own params alone.

    Several snapshots of the models may come one after another, as params and columns (snapshots * models, ...): the
    inputs that drive models are then drawn only once.
    """
    chosen = _loaded(tuple(names))
    first, count = next(iter(params.values())), len(members.ids)
    num_snapshots = len(first) // count
    by_snapshot = {name: tensor.unflatten(0, (num_snapshots, count)) for name, tensor in params.items()}
    measured = {
        name: torch.empty(num_snapshots, count, dtype=torch.float64)
        for name in columns(names, [family.effective_spec])
    }
    size = _chunk_size(family, task, first.device, method, count)
    for low in range(0, count, size.models):
        models, inputs = slice(low, low + size.models), None
        part = members.part(low, low + size.models)
        for snapshot in range(0, num_snapshots, size.snapshots):
            cells = slice(snapshot, snapshot + size.snapshots), models
            chunk = {name: tensor[cells] for name, tensor in by_snapshot.items()}
            driven = Driven(family, _side_by_side(chunk), task, part, method, inputs)
            inputs = driven.inputs
            for name, column in _measure(chosen, driven).items():
                measured[name][cells] = column.unflatten(0, (-1, len(part.ids)))
    return {name: column.flatten() for name, column in measured.items()}


def in_parts(family: Family, params: Params, members: Members, method: Method = "stacked") -> Iterator[Driven]:
    """Stacked params (models, ...) without a task, driven, as many models at a time as `measure` takes."""
    device, count = next(iter(params.values())).device, len(members.ids)
    size = _chunk_size(family, None, device, method, count).models
    for low in range(0, count, size):
        chunk = {name: tensor[low : low + size] for name, tensor in params.items()}
        yield Driven(family, chunk, None, members.part(low, low + size), method)


def padded(family: Family, task: Task | None, members: Members, device: str, method: Method) -> Members:
    """The members as they are measured: padded, but for models so large that a chunk has fewer than padding needs."""
    size = _chunk_size(family, task, torch.device(device), method, len(members.ids))
    return members.padded() if size.models >= MULTIPLE or device != "cpu" else members


def _side_by_side(params: Params) -> Params:
    """Params (snapshots, models, ...) as (snapshots * models, ...)."""
    return {name: tensor.flatten(0, 1) for name, tensor in params.items()}


class _ChunkSize(NamedTuple):
    """Models, and snapshots of each of them, that are measured at once."""

    models: int
    snapshots: int


def _chunk_size(
    family: Family, task: Task | None, device: torch.device, method: Method, num_models: int
) -> _ChunkSize:
    """The largest chunk that fits a GPU's memory, or that is fast on the CPU."""
    jacobians = jacobian_bytes(family)
    if device.type == "cpu":
        models = min(MODELS_TOGETHER[method], max(MOST_BYTES // jacobians, 1))
        return _ChunkSize(models, max(CPU_BYTES // (jacobians * models), 1) if method == "native" else 1)
    states = 0 if task is None else 8 * SEQUENCES_TOGETHER * task.num_steps * family.spec.state_size
    fitting = max(CUDA_BYTES // max(jacobians, states), 2)
    models = min(fitting, num_models)
    return _ChunkSize(models, fitting // models)


def _measure(labels: Sequence[Label], driven: Driven) -> dict[str, Tensor]:
    """Every column (models,) on the CPU, NaN where it is not finite."""
    with torch.no_grad():
        measured = {name: value for label in labels for name, value in label.measure(driven).items()}
    if not measured:
        return {}
    columns = torch.stack([column.to(torch.float64) for column in measured.values()])
    usable = torch.where(driven.finite & columns.isfinite(), columns, torch.nan)
    return dict(zip(measured, usable.cpu()[:, : driven.num_models], strict=True))
