"""Components that record their constructor's arguments, from which a checkpoint makes them again."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

_DATA = ("augment", "batch", "datamodule", "sampling", "targets")
MOVED = {f"weightspace.{name}": f"weightspace.data.{name}" for name in _DATA}
MOVED["weightspace.module"] = "weightspace.training.module"
"""Modules of version 0.3 whose classes checkpoints and configs may name -> where they are now."""


def of_today(value: Any) -> Any:
    """Plain values of a checkpoint, with class paths of earlier versions replaced by today's."""
    if isinstance(value, list | tuple):
        return [of_today(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    updated = {key: of_today(item) for key, item in value.items()}
    for key in ("class_path", "_class_path"):
        if isinstance(updated.get(key), str):
            module, _, name = updated[key].rpartition(".")
            updated[key] = f"{MOVED.get(module, module)}.{name}"
    return updated


class Constructed:
    """Mixin that records the arguments of the constructor, defaults included."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            setattr(cls, "__init__", _recorded(cls.__dict__["__init__"]))  # noqa: B010, mypy refuses the plain form

    @property
    def construction(self) -> dict[str, Any]:
        """`{"class_path": ..., "init_args": {...}}` of plain values, from which a config makes this component again."""
        arguments = self.__dict__.get("_arguments", {})
        class_path = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"class_path": class_path, "init_args": {name: plain(value) for name, value in arguments.items()}}


def _recorded(init: Any) -> Any:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        # The outermost constructor runs first: those of its bases must not overwrite its arguments.
        if "_arguments" not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.__dict__["_arguments"] = dict(list(bound.arguments.items())[1:])
        init(self, *args, **kwargs)

    return construct


def plain(value: Any) -> Any:
    """A value as numbers, text, lists and dicts, the types of a config file."""
    if isinstance(value, Constructed):
        return value.construction
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"An argument of type {type(value).__name__} cannot be written to a checkpoint; "
        "give components numbers, text, lists, dicts, dataclasses or other components."
    )
