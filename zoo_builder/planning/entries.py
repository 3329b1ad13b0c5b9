"""Entries of a recipe: their options, the instance of each, and the spreads of its fields over models."""

from __future__ import annotations

import inspect
import itertools
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from weightspace.components.discovery import refuse_unknown_fields
from weightspace.terminal import shown
from zoo_builder.planning.spread import Spread, parse_spread


def crossed(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Entries without lists, one for each combination of the lists' values."""
    lists = [value if isinstance(value, list) else [value] for value in entry.values()]
    for combination in itertools.product(*lists):
        yield dict(zip(entry, combination, strict=True))


def refuse_missing(name: str, kind: type, fields: Mapping[str, Any], where: str) -> None:
    """Raise ValueError where `fields` has an option that `kind` does not know, or lacks one without a default."""
    parameters = inspect.signature(kind).parameters
    # Before the missing options: a misspelt one is missing, too.
    refuse_unknown_fields(kind, fields)
    missing = [p.name for p in parameters.values() if p.default is inspect.Parameter.empty and p.name not in fields]
    if missing:
        raise ValueError(f"{name} under `{where}` needs {', '.join(f'`{key}`' for key in missing)}.")


def spread_entry(entry: Mapping[str, Any], load: Any, available: Mapping[str, Any]) -> tuple[Any, dict[str, Spread]]:
    """The instance of an entry and its spread fields; both ends of every spread must make a valid instance.

    A field of a group of options has a dotted name, such as `exams.threshold`.
    """
    name = entry["class"]
    fields: dict[str, Any] = {key: value for key, value in entry.items() if key != "class"}
    if name not in available:
        return load(name, fields), {}
    kind = available[name]
    groups = getattr(kind, "groups", {})
    flat = dict(_flattened(name, fields, groups))
    spreads = {key: parse_spread(f"`{key}` of {name}", value) for key, value in flat.items() if key in kind.varying}
    for key, value in flat.items():
        if isinstance(value, Mapping) and value and key not in spreads:
            raise ValueError(
                f"`{key}` of {name} cannot differ between models; {list(kind.varying) or 'no option'} can."
            )
    ends = []
    for end in (1, 0):
        own = {key: _hint(kind, groups, key)(spread.extremes[end]) for key, spread in spreads.items()}
        ends.append(load(name, _nested(flat | own)))
    return ends[-1], {key: spread for key, spread in spreads.items() if spread.kind != "fixed"}


def _flattened(name: str, fields: Mapping[str, Any], groups: Mapping[str, type]) -> Iterator[tuple[str, Any]]:
    """The fields with those of groups under dotted names; a group that is empty or not used stays as it is."""
    for key, value in fields.items():
        if key not in groups or not (value or isinstance(value, str)):
            yield key, value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{option}", choice) for option, choice in value.items())
        else:
            raise ValueError(f"`{key}` of {name} must be a mapping of options, found {shown(value)}.")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, option = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[option] = value
    return nested


def _hint(kind: type, groups: Mapping[str, type], key: str) -> Any:
    group, _, option = key.rpartition(".")
    return typing.get_type_hints(groups[group] if group else kind)[option]
