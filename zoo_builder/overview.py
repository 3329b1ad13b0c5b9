"""What there is to build with, and what a finished zoo holds, as plain data and as text."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from weightspace import families
from weightspace.components.discovery import refuse_unknown_name
from weightspace.families import Family
from weightspace.rollout import native
from weightspace.store import Zoo, open_zoo
from zoo_builder import labels, learning, studies, tasks

_CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d[^()]*(?:\([^()]*\)[^()]*)*)\)|\bas in ([^;]*?\b(?:19|20)\d\d)")

KINDS = ("families", "tasks", "labels", "learners", "studies")
_SINGULAR = {"families": "family", "studies": "study"}


def listing(kind: str, name: str | None = None) -> list[dict[str, Any]]:
    """Everything of one kind, or the one that `name` names: name, definition (one line) and citation (None without).

    Families also say whether they run natively here: `not_native` is None, or the reason why not. Studies also have
    their paper and their gates.
    """
    available: dict[str, Callable[[], Mapping[str, type]]] = {
        "families": families.available,
        "tasks": tasks.available,
        "labels": labels.available,
        "learners": learning.available,
        "studies": studies.available,
    }
    found = available[kind]()
    if name is not None:
        refuse_unknown_name(_SINGULAR.get(kind, kind.removesuffix("s")), name, sorted(found))
        found = {name: found[name]}
    rows = [{"name": name, **_described(found[name])} for name in sorted(found)]
    if kind == "families":
        for row in rows:
            row["not_native"] = _not_native(families.available()[row["name"]].examples())
    if kind == "studies":
        rows = [row | _of_study(studies.available()[row["name"]]) for row in rows]
    return rows


def _of_study(study: type[studies.Study]) -> dict[str, Any]:
    gates = [dataclasses.asdict(gate) for gate in study.gates]
    return {"citation": study.paper, "paper": study.paper, "gates": gates}


def _not_native(examples: Sequence[Family]) -> str | None:
    return next((reason for example in examples if (reason := native.why_not(example)) is not None), None)


def _described(kind: type) -> dict[str, Any]:
    text = inspect.getdoc(kind) or ""
    cited = _CITATION.search(" ".join(text.split()))
    definition = text.partition("\n")[0]
    return {"definition": definition, "citation": next(filter(None, cited.groups())) if cited else None}


def info(path: str | Path) -> dict[str, Any]:
    """Counts of a finished zoo by family, task, split and status, and the range of each label."""
    zoo = open_zoo(path)
    table = zoo.table
    counts = {
        name: {str(key): number for key, number in sorted(Counter(map(str, table[name].to_pylist())).items())}
        for name in ("family", "task", "step", "status", "split", "split_task", "split_size", "fold_family")
    }
    return {
        "path": str(path),
        "title": zoo.manifest["recipe"].get("title", ""),
        "fingerprint": zoo.fingerprint,
        "executor": zoo.manifest["executor"],
        "models": zoo.manifest["num_models"],
        "rows": zoo.num_rows,
        "shards": len(zoo.manifest["shards"]),
        "counts": counts,
        "labels": {name: _range(zoo, name) for name in zoo.manifest["labels"]},
    }


def _range(zoo: Zoo, name: str) -> dict[str, Any]:
    column = zoo.table[name]
    bounds = pc.min_max(column).as_py()
    return {
        "count": len(column) - column.null_count,
        "low": bounds["min"],
        "mean": _finite(pc.mean(column).as_py()),
        "high": bounds["max"],
        "unit": zoo.manifest["labels"][name]["unit"],
        # None where it was measured with what built the zoo.
        "measured_with": zoo.manifest["labels"][name].get("measured_with"),
    }


def _finite(number: float | None) -> float | None:
    """None for a mean beyond the largest number, which JSON cannot say."""
    return None if number is None or not math.isfinite(number) else number


def listing_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A listing as text, a few lines each."""
    lines = []
    for row in rows:
        lines.append(f"{row['name']}: {row['definition']}")
        if row["citation"]:
            lines.append(f"    {row['citation']}")
        if row.get("not_native"):
            lines.append(f"    Run by torch, not natively: {row['not_native']}.")
        lines += [f"    gate: {studies.Gate(**gate)}" for gate in row.get("gates", ())]
    return "\n".join(lines)


def info_text(found: Mapping[str, Any]) -> str:
    """What a zoo holds, as text."""
    lines = [
        f"{found['title']}: {found['models']:,} models, {found['rows']:,} rows, {found['shards']:,} shards",
        f"fingerprint {found['fingerprint']}",
    ]
    for name, counts in found["counts"].items():
        lines.append(f"rows by {name}: " + ", ".join(f"{key} {number:,}" for key, number in counts.items()))
    width = max([len(name) for name in found["labels"]], default=0)
    for name, label in found["labels"].items():
        numbers = ["         -" if label[key] is None else f"{label[key]:10.4g}" for key in ("low", "mean", "high")]
        other = "" if label["measured_with"] is None else "  (measured with other versions than built the zoo)"
        lines.append(f"{name:{width}}  {label['count']:6} values  {'  '.join(numbers)}  {label['unit']}{other}")
    return "\n".join(lines)
