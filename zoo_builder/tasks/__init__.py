"""One file per task that models are trained on; a new file here is found by its class name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.components.discovery import concrete_subclasses, load_from
from zoo_builder.tasks.base import Batch, Split, Task

__all__ = ["Batch", "Split", "Task", "available", "load"]


def available() -> dict[str, type[Task]]:
    """Every concrete task by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Task)


def load(name: str, fields: Mapping[str, Any]) -> Task:
    """The task with this class name and these fields."""
    return load_from(available(), "task", name, fields)
