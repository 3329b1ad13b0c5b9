"""Plain data of recipes: YAML read without loss, and values of other kinds refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weightspace.terminal import printable, shown

MOST_BYTES = 200_000
"""Bytes of the longest file: YAML is read a hundred times as slowly as it is written."""
MOST_VALUES, MOST_LEVELS, MOST_CHARACTERS = 100_000, 8, 2_000
LARGEST = 2**63 - 1
"""Largest whole number: tensors and tables hold 64 bits."""


def read_yaml(path: Path) -> Any:
    """Content of a YAML file of plain data; ValueError with the reason where it is none."""
    if not path.is_file():
        raise ValueError(f"There is no recipe {path}.")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and no recipe more than {MOST_BYTES:,}.")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}.") from None


def parse_yaml(text: str, where: str) -> Any:
    """Content of YAML: numbers as in YAML 1.2, where 1e-3 is one, and no key twice; `where` names it in messages."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            # Merged mappings, nested a few times, outgrow any memory.
            first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":merge")]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key.value, str) and key.value in seen:
                    line = key.start_mark.line + 1
                    raise ValueError(f"the key {shown(key.value)} stands twice in one mapping, in line {line}")
                seen |= {key.value} if isinstance(key.value, str) else set()
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        # Safe: the loader derives from SafeLoader.
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {' '.join(printable(error).split())}") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # Errors of PyYAML for a date, a long number or a tag that does not fit its value.
        raise ValueError(f"{where} cannot be read: {printable(error)}.") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply; nothing in it needs more than {MOST_LEVELS} levels.") from None


def refuse_odd(data: Any, where: str) -> None:
    """Raise ValueError, with the place, unless values are text, finite numbers, true, false, null, lists, mappings.

    Bounds: no number beyond 64 bits, few levels, short text, names as keys.
    """
    for count, (path, value, level) in enumerate(_values(data, "", 0)):
        if count > MOST_VALUES:
            raise ValueError(f"{where} holds more than {MOST_VALUES:,} values; write lists shorter.")
        problem = _problem(value, level)
        if problem:
            field = f"`{path.removeprefix('.')}`" if path else where
            raise ValueError(f"{field} (={shown(value)}) {problem}.")


def _values(value: Any, path: str, level: int) -> Iterator[tuple[str, Any, int]]:
    yield path, value, level
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _values(item, f"{path}.{key}", level + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _values(item, f"{path}[{index}]", level + 1)


def _problem(value: Any, level: int) -> str:
    if level > MOST_LEVELS:
        return f"is nested too deeply, more than {MOST_LEVELS} levels"
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str) or _odd_text(key)]
        if not odd:
            return ""
        comma = " (a decimal is written with a point, as 0.01)" if isinstance(odd[0], int) else ""
        return f"has the key {shown(odd[0])}; keys are names{comma}"
    if isinstance(value, str):
        return _odd_text(value)
    if value is None or isinstance(value, bool | list):
        return ""
    if not isinstance(value, int | float):
        return f"is a {type(value).__name__}; write a number, text in quotes, true, false, null, a list or a mapping"
    if isinstance(value, int):
        return "" if abs(value) <= LARGEST else "is too large a number; whole numbers have 64 bits"
    return "" if math.isfinite(value) else "must be a finite number"


def _odd_text(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        return f"is too long a text; {MOST_CHARACTERS:,} characters are enough"
    return "" if printable(text) == text else "holds characters that cannot be shown"
