"""JSON from files of unknown origin: a mapping, without NaN and infinity, of bounded nesting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEEPEST = 64
"""Bound on nesting, twice that of any document written here: functions recurse over documents."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


# One decoder for all calls: tables have a JSON text in every row.
_DECODER = json.JSONDecoder(parse_constant=_refuse)


def parse(text: str | bytes) -> dict[str, Any]:
    """The mapping of a JSON text; the ValueError of other text completes a sentence that begins with its file."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        document = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(document, dict):
        raise ValueError(f"holds JSON of type {type(document).__name__}, expected a mapping")
    if text.count("{") + text.count("[") <= DEEPEST:
        return document
    level: list[Any] = [document]
    for _ in range(DEEPEST):
        level = [item for outer in level for item in _inner(outer)]
        if not level:
            return document
    raise ValueError(f"is JSON nested more than {DEEPEST} deep")


def read(path: Path) -> dict[str, Any]:
    """The mapping of a JSON file; ValueError names the file and the reason."""
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} {error}.") from None


def _inner(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]
