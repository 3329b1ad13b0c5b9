"""Catalogue of the members that recipes, configs and commands can name, as plain data and as text."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightspace.components.discovery import near_match
from weightspace.terminal import shown
from zoo_builder.fields import fields_of

KINDS = {
    "families": "weightspace.families",
    "tasks": "zoo_builder.tasks",
    "labels": "zoo_builder.labels",
    "learners": "zoo_builder.learning",
    "studies": "zoo_builder.studies",
    "encoders": "weightspace.encoders",
    "objectives": "weightspace.objectives",
    "recipes": "weightspace.recipes",
}
"""Kind -> the module whose `available()` finds its members by name.

Modules are imported when their kind is asked for: torch takes seconds, and encoders and objectives bring in PyG.
"""

_CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d[^()]*(?:\([^()]*\)[^()]*)*)\)|\bas in ([^;]*?\b(?:19|20)\d\d)")


def listing(kind: str, name: str | None = None) -> list[dict[str, Any]]:
    """Every member of a kind, or the one that `name` names: `name`, `definition` (one line), `citation` (or None).

    Families also say whether they run natively here: `not_native` is None, or the reason why not. Studies have their
    `paper` and `gates`, recipes the `path` of their file. One member alone has its `fields` as well (`fields_of`); a
    label its `columns` with unit and meaning; a recipe its `text`. ValueError where there is no such member.
    """
    members = importlib.import_module(KINDS[kind]).available()
    if name is None:
        return [_row(kind, key, members[key]) for key in sorted(members)]
    if name not in members:
        raise ValueError(f"No {shown(name)} is among the {kind} {sorted(members)}.{near_match(name, members)}")
    return [_row(kind, name, members[name]) | _details(kind, members[name])]


def _row(kind: str, name: str, member: Any) -> dict[str, Any]:
    """Record of a member in the listing of its kind."""
    if kind == "recipes":
        lines = itertools.takewhile(lambda line: line.startswith("#"), member.read_text().splitlines())
        text = "\n".join(line.lstrip("# ") for line in lines)
        return {"name": name, **_described(text), "path": str(member)}
    text = inspect.getdoc(member) or ""
    row = {"name": name, **_described(text)}
    if kind == "families":
        row["not_native"] = _not_native(member)
    if kind == "studies":
        row |= {"citation": member.paper, "paper": member.paper}
        row["gates"] = [dataclasses.asdict(gate) for gate in member.gates]
    return row


def _summary(text: str) -> str:
    """Definition in a docstring: its first line, with the lines up to the end of its first sentence."""
    summary = ""
    for line in text.partition("\n\n")[0].splitlines():
        summary = f"{summary} {line.strip()}".lstrip()
        if summary.endswith((".", "?")):
            break
        # End of a sentence inside the line, but not at "et al." or an initial.
        ended = re.match(r".*(?<! al)[a-z0-9)`][.?](?= [A-Z`])", summary)
        if ended is not None:
            return ended[0]
    return summary


def _described(text: str) -> dict[str, Any]:
    cited = _CITATION.search(" ".join(text.split()))
    return {"definition": _summary(text), "citation": next(filter(None, cited.groups())) if cited else None}


def _not_native(family: Any) -> str | None:
    # Torch is imported when a family is asked for.
    from weightspace.rollout import native

    return next((reason for example in family.examples() if (reason := native.why_not(example)) is not None), None)


def _details(kind: str, member: Any) -> dict[str, Any]:
    """Details of a member that is listed alone."""
    if kind == "recipes":
        return {"text": member.read_text()}
    least = {} if kind != "families" else _least_sizes(member)
    if getattr(member, "difficulty", None) is not None:
        least |= dict([member.difficulty])
    details: dict[str, Any] = {"fields": fields_of(member, least, getattr(member, "varying", ()))}
    if kind == "labels":
        details["columns"] = _columns(member())
    return details


def _least_sizes(family: Any) -> dict[str, int]:
    """Least value of the whole numbers of a family that declare none: 1, by the contract of `Family`."""
    return {item.name: 1 for item in dataclasses.fields(family) if item.type in ("int", int)}


def _columns(label: Any) -> list[dict[str, Any]]:
    """Columns that a label measures on the examples of the families, and the families that have each."""
    # Torch is imported when a label is asked for.
    from weightspace import families

    rows: dict[str, dict[str, Any]] = {}
    for family, kind in families.available().items():
        for example in kind.examples():
            # Some labels are for few families only.
            with contextlib.suppress(ValueError):
                for column in label.columns(example.effective_spec):
                    row = dataclasses.asdict(column)
                    row["meaning"] = row.pop("definition")
                    having = rows.setdefault(column.name, {**row, "families": []})["families"]
                    if family not in having:
                        having.append(family)
    return [rows[name] for name in sorted(rows)]


def listing_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A listing as text, a few lines each."""
    lines: list[str] = []
    for row in rows:
        lines.append(f"{row['name']}: {row['definition']}")
        if row["citation"]:
            lines.append(f"    {row['citation']}")
        if row.get("not_native"):
            lines.append(f"    Run by torch, not natively: {row['not_native']}.")
        for gate in row.get("gates", ()):
            lines.append(f"    gate: {gate['name']} {gate['comparison']} {gate['threshold']:g} {gate['unit']}")
        lines += [f"    field {_field_text(field)}" for field in row.get("fields", ())]
        for column in row.get("columns", ()):
            lines.append(f"    column {column['name']} ({column['unit']}): {column['meaning']}")
            lines.append(f"        of {', '.join(column['families'])}")
        if "text" in row:
            lines += ["", row["text"].rstrip()]
    return "\n".join(lines)


def _field_text(field: Mapping[str, Any]) -> str:
    """Line of a field: name, type or choices, default, range and meaning."""
    kind = field["type"] if field["choices"] is None else " | ".join(map(json.dumps, field["choices"]))
    default = "required" if field["required"] else f"= {json.dumps(field['default'])}"
    notes = [
        *([f"at least {field['least']}"] if field["least"] is not None else []),
        *(["may differ between models"] if field["varies"] else []),
    ]
    text = f"{field['name']}: {kind} {default}" + (f" ({', '.join(notes)})" if notes else "")
    return text if field["meaning"] is None else f"{text}  {field['meaning']}"
