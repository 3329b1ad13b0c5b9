"""Classes by name: every concrete subclass that the files of a package define, without a list to keep."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from weightspace.components import plugins
from weightspace.terminal import shown

T = TypeVar("T")


def concrete_subclasses(package: str, base: type) -> dict[str, type]:
    """Every concrete subclass of `base` that the files of `package`, or allowed packages, define, by class name.

    A file that does not import raises here, and so do two classes of one name.
    """
    return _classes_in(package, base, plugins.allowed())


@cache
def _classes_in(package: str, base: type, allowed: tuple[str, ...]) -> dict[str, type]:
    classes: dict[str, type] = {}
    for module in [*plugins.modules_in(importlib.import_module(package)), *plugins.modules()]:
        for name, value in vars(module).items():
            if not inspect.isclass(value) or not issubclass(value, base) or inspect.isabstract(value):
                continue
            if classes.setdefault(name, value) is not value:
                modules = f"{classes[name].__module__} and {value.__module__}"
                raise ValueError(f"Two classes are called '{name}', in {modules}; rename one of them.")
    return classes


def load_from(classes: Mapping[str, type[T]], kind: str, name: str, fields: Mapping[str, Any]) -> T:
    """The instance of class `name` with these fields; an unknown name or field is refused with the near match."""
    if not isinstance(name, str) or not isinstance(fields, Mapping):
        raise ValueError(f"A {kind} is the name of a class with a mapping of options, found {shown((name, fields))}.")
    refuse_unknown_name(kind, name, sorted(classes), f" ({plugins.OPTION} PKG adds those of your own package.)")
    refuse_unknown_fields(classes[name], fields)
    missing = [
        p.name
        for p in inspect.signature(classes[name]).parameters.values()
        if p.default is inspect.Parameter.empty and p.name not in fields
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(f'`{key}`' for key in missing)}, which the {kind} leaves open.")
    check_fields(classes[name], fields)
    return classes[name](**fields)


def refuse_unknown_name(kind: str, name: object, known: Iterable[str], hint: str = "") -> None:
    """Raise ValueError, with the near match and the hint, unless `name` is among the known names of this kind."""
    names = list(known)
    if name not in names:
        raise ValueError(f"No {kind} is called {shown(name)}; there are {names}.{near_match(str(name), names)}{hint}")


def refuse_unknown_options(owner: str, options: Iterable[object], known: Iterable[str], noun: str = "option") -> None:
    """Raise ValueError, with the near match, for an option of `owner` that is not among the known ones."""
    names = list(known)
    for option in options:
        if option not in names:
            near = near_match(str(option), names)
            raise ValueError(f"{owner} has no {noun} {shown(option)}; it has {names}.{near}")


def refuse_unknown_fields(kind: type, fields: Iterable[str]) -> None:
    """Raise ValueError, with the near match, for a field that the constructor of `kind` does not take."""
    refuse_unknown_options(kind.__name__, fields, inspect.signature(kind).parameters)


def check_fields(kind: type, fields: Mapping[str, Any]) -> None:
    """Raise ValueError where a field has another type than its class declares, or is a number that is not finite."""
    # Fields of a dataclass are annotated in the class, arguments of another class in its constructor.
    hints = typing.get_type_hints(kind if dataclasses.is_dataclass(kind) else inspect.getattr_static(kind, "__init__"))
    for name, value in fields.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            raise ValueError(f"`{name}` (={shown(value)}) of {kind.__name__} must be {_described(hint)}.")


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in typing.get_args(hint))
    if hint is float and isinstance(value, float):
        return math.isfinite(value)
    if hint in (int, float):
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    # Items of lists and mappings are checked by the class itself.
    return isinstance(value, hint) if isinstance(hint, type) and origin is None else True


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {list(typing.get_args(hint))}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_described(choice) for choice in typing.get_args(hint))
    if hint is float:
        return "of type float, and finite"
    return "null" if hint is type(None) else f"of type {getattr(hint, '__name__', hint)}"


def near_match(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known name, empty where none is near."""
    known = list(known)
    folded = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.4)
    return f" Did you mean '{folded[near[0]]}'?" if near else ""
