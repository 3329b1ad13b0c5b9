"""Comparison of two plans, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def refuse_differences(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> None:
    """Raise ValueError naming every field in which two plans differ."""
    differences = list(_differences(old, new, ""))
    if differences:
        raise ValueError(f"{what}: {'; '.join(differences)}. Use another folder, or go back to the old values.")


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{where}[{index}]")
    elif old != new:
        yield f"{where} was {json.dumps(old)}, now {json.dumps(new)}"
