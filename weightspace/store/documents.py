"""JSON from files that anybody may have written: a mapping, of numbers JSON has, nested no deeper than any of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEEPEST = 64
"""No document of ours is nested half as deep; what works on a document may go down it by calling itself."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


# Made once, because tables have a text in every row.
_DECODER = json.JSONDecoder(parse_constant=_refuse)


def parse(text: str | bytes) -> dict[str, Any]:
    """The mapping that a text of JSON holds; ValueError says, as the end of a sentence, why it is none."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        found = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"holds JSON of type {type(found).__name__}, expected a mapping")
    if text.count("{") + text.count("[") <= DEEPEST:
        return found
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        level = [item for outer in level for item in _inner(outer)]
        if not level:
            return found
    raise ValueError(f"is JSON nested more than {DEEPEST} deep")


def read(path: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds; ValueError names the file and says why it holds none."""
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} {error}.") from None


def _inner(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]
