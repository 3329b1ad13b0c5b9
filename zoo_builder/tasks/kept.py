"""Tensors of tasks that a zoo keeps, because no fields of a task draw them again with other versions of a package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from weightspace import store
from zoo_builder.tasks.base import Task

_ZOO: ContextVar[Path | None] = ContextVar("zoo", default=None)


@contextlib.contextmanager
def kept_in(zoo: Path | None) -> Iterator[None]:
    """Tasks that are made inside find what the folder of a zoo keeps of them; None: there is no zoo yet."""
    token = _ZOO.set(zoo)
    try:
        yield
    finally:
        _ZOO.reset(token)


def kept(name: str) -> dict[str, Tensor]:
    """Tensors that the zoo at hand keeps under a task's name; empty where it keeps none, or where no zoo is at hand."""
    zoo = _ZOO.get()
    if zoo is None or not (zoo / store.TASKS).exists():
        return {}
    store.refuse_links(zoo, store.TASKS)
    return _read(zoo / store.TASKS, name)


def keep(zoo: Path, tasks: Iterable[Task | None], expected: Mapping[str, Any] | None = None) -> None:
    """Write all that tasks have a zoo keep, unless its folder has it; nothing where they have nothing.

    `expected` are the bytes and sha256 that the file must come out with. ValueError where it would not, or where the
    folder has other tensors: the models of other builders would then have learned from others.
    """
    tensors: dict[str, Tensor] = {}
    for task in tasks:
        tensors |= {} if task is None else task.kept
    if not tensors:
        return
    path = zoo / store.TASKS
    store.refuse_links(zoo, store.TASKS)
    if path.exists() and expected is None:
        _refuse_other(path, tensors)
        return
    if store.is_intact(path, expected):
        return
    data = safetensors.torch.save(tensors)
    if expected is not None and store.bytes_entry(data) != expected:
        raise ValueError(f"{path} cannot be made again: tasks draw other trials here. Copy the file from elsewhere.")
    store.write_durably(path, data)


def _read(path: Path, name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    try:
        with safetensors.safe_open(path, "pt") as opened:
            keys = [key for key in list(opened.keys()) if key.startswith(prefix)]
            return {key[len(prefix) :]: opened.get_tensor(key) for key in keys}
    except (safetensors.SafetensorError, OSError) as error:
        way_out = f"`zoo-builder verify {path.parent} --repair` makes it again"
        raise ValueError(f"{path} is damaged ({error}); {way_out}.") from None


def _refuse_other(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name in sorted({key.partition(".")[0] for key in tensors}):
        there = _read(path, name)
        drawn = {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        if there.keys() != drawn.keys() or not all(torch.equal(there[key], drawn[key]) for key in drawn):
            raise ValueError(
                f"{path} has other trials than this builder draws: another version of their package wrote it. Run the "
                "same build again, which reads them, or build into a new folder."
            )
