"""Fields of a class that recipes and configs name: type, default, least value, choices and docstring."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from weightspace.components.construction import plain


def refuse_below_least(instance: Any, where: str = "") -> None:
    """Raise ValueError where a field is below the least value that it declares, `field(metadata={"least": 1})`."""
    for item in dataclasses.fields(instance):
        value, least = getattr(instance, item.name), item.metadata.get("least")
        if least is not None and value < least:
            raise ValueError(f"`{item.name}` (={value}){where} must be at least {least}.")


def fields_of(kind: type, least: Mapping[str, int] | None = None, varying: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The arguments of a class's constructor, in order, as plain data.

    `name`, `type`, `default` (None where it is `required`), `choices` (None where any value of the type will do),
    `least` (None where nothing is declared; `least` adds to what fields declare), `varies` (whether models of one
    cohort may differ in it) and `meaning`, the attribute's docstring (None without). A group of options is followed by
    its own fields, under dotted names.
    """
    declared = {item.name: item for item in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    meanings = docstrings(kind)
    hints = typing.get_type_hints(kind if declared else vars(kind)["__init__"])
    rows = []
    for name, parameter in inspect.signature(kind).parameters.items():
        item, hint = declared.get(name), hints.get(name, Any)
        default = parameter.default if item is None else _default(item)
        required = default is inspect.Parameter.empty
        lowest = (least or {}).get(name) if item is None else item.metadata.get("least", (least or {}).get(name))
        rows.append(
            {
                "name": name,
                "type": type_text(hint),
                "required": required,
                "default": None if required else plain(default),
                "choices": list(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else None,
                "least": lowest,
                "varies": name in varying,
                "meaning": meanings.get(name),
            }
        )
        group = getattr(kind, "groups", {}).get(name)
        if group is not None:
            inner = [field.removeprefix(f"{name}.") for field in varying if field.startswith(f"{name}.")]
            rows += [{**row, "name": f"{name}.{row['name']}"} for row in fields_of(group, varying=inner)]
    return rows


def docstrings(kind: type) -> dict[str, str]:
    """The docstrings of a class's attributes, the texts below their annotations, inherited ones included."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not vars(base).get("__annotations__") or base.__module__ == "builtins":
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, below in itertools.pairwise([*definition.body, ast.Pass()]):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            texts.pop(statement.target.id, None)
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and type(below.value.value) is str:
                texts[statement.target.id] = " ".join(below.value.value.split())
    return texts


def type_text(hint: Any) -> str:
    """A type as a recipe's author reads it: `int`, `text`, `yes or no`, `Schedule or null`, `list of int`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(dict.fromkeys(type_text(type(choice)) for choice in arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(part) for part in arguments)
    if origin is not None:
        inner = ", ".join(type_text(part) for part in arguments if part is not Ellipsis)
        return f"{'mapping' if issubclass(origin, Mapping) else 'list'} of {inner}"
    names: dict[Any, str] = {str: "text", bool: "true or false", type(None): "null", Any: "any"}
    return names.get(hint) or str(getattr(hint, "__name__", hint))


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return inspect.Parameter.empty if item.default is dataclasses.MISSING else item.default
