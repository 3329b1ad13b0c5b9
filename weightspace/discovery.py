"""How classes are found by name: one file per class in a package, no list to keep."""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from weightspace import plugins

T = TypeVar("T")


def concrete_subclasses(package: str, base: type) -> dict[str, type]:
    """Every concrete subclass of `base` that the files of `package`, or allowed packages, define, by class name.

    A file that does not import raises here, and so do two classes of one name.
    """
    return _found(package, base, plugins.allowed())


@cache
def _found(package: str, base: type, allowed: tuple[str, ...]) -> dict[str, type]:
    found: dict[str, type] = {}
    for module in [*plugins.modules_in(importlib.import_module(package)), *plugins.modules()]:
        for name, value in vars(module).items():
            if not inspect.isclass(value) or not issubclass(value, base) or inspect.isabstract(value):
                continue
            if found.setdefault(name, value) is not value:
                places = f"{found[name].__module__} and {value.__module__}"
                raise ValueError(f"Two classes are called '{name}', in {places}; rename one of them.")
    return found


def load_from(found: Mapping[str, type[T]], kind: str, name: str, fields: Mapping[str, Any]) -> T:
    """The instance of class `name` with these fields; an unknown name or field is refused with the near match."""
    if name not in found:
        raise ValueError(
            f"No {kind} is called '{name}'; there are {sorted(found)}.{near_match(name, found)} "
            f"({plugins.OPTION} PKG adds those of your own package.)"
        )
    refuse_unknown(found[name], fields)
    missing = [
        p.name
        for p in inspect.signature(found[name]).parameters.values()
        if p.default is inspect.Parameter.empty and p.name not in fields
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(f'`{key}`' for key in missing)}, which the {kind} leaves open.")
    check_fields(found[name], fields)
    return found[name](**fields)


def refuse_unknown(kind: type, fields: Iterable[str]) -> None:
    """Raise ValueError, with the near match, for a field that the constructor of `kind` does not take."""
    known = list(inspect.signature(kind).parameters)
    for key in fields:
        if key not in known:
            raise ValueError(f"{kind.__name__} has no option '{key}'; it has {known}.{near_match(key, known)}")


def check_fields(kind: type, fields: Mapping[str, Any]) -> None:
    """Raise ValueError where a field is not of the type its class declares (int, float, str, bool or a Literal)."""
    hints = typing.get_type_hints(kind)
    for name, value in fields.items():
        hint = hints.get(name)
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
        if choices is not None and value not in choices:
            raise ValueError(f"`{name}` (={value!r}) of {kind.__name__} must be one of {list(choices)}.")
        wanted = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}.get(hint) if hint else None
        if hint and wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool)):
            raise ValueError(f"`{name}` (={value!r}) of {kind.__name__} must be of type {hint.__name__}.")


def near_match(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known name, empty where none is near."""
    known = list(known)
    folded = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.4)
    return f" Did you mean '{folded[near[0]]}'?" if near else ""
