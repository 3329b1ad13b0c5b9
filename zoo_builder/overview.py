"""Overview of a finished zoo, as plain data and as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from weightspace.store import Zoo, open_zoo


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
        # None where the executor of the build measured it.
        "measured_with": zoo.manifest["labels"][name].get("measured_with"),
    }


def _finite(number: float | None) -> float | None:
    """A finite number, else None: JSON has no infinity."""
    return None if number is None or not math.isfinite(number) else number


def info_text(found: Mapping[str, Any]) -> str:
    """Overview of a zoo as text."""
    lines = [
        f"{found['title']}: {found['models']:,} models, {found['rows']:,} rows, {found['shards']:,} shards",
        f"fingerprint {found['fingerprint']}",
    ]
    for name, counts in found["counts"].items():
        lines.append(f"rows by {name}: " + ", ".join(f"{key} {number:,}" for key, number in counts.items()))
    width = max([len(name) for name in ("label", *found["labels"])])
    if found["labels"]:
        heads = "  ".join(f"{key:>10}" for key in ("low", "mean", "high"))
        lines.append(f"{'label':{width}}  {'values':>13}  {heads}  unit")
    for name, label in found["labels"].items():
        numbers = ["         -" if label[key] is None else f"{label[key]:10.4g}" for key in ("low", "mean", "high")]
        other = "" if label["measured_with"] is None else "  (measured with other versions than built the zoo)"
        lines.append(f"{name:{width}}  {label['count']:6} values  {'  '.join(numbers)}  {label['unit']}{other}")
    return "\n".join(lines)
