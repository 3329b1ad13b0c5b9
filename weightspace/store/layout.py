"""Names and numbers of the format: what a zoo folder contains, and how its files are identified."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1

MANIFEST, TABLE, CARD, SHARDS = "zoo.json", "models.parquet", "README.md", "shards"
TASKS = "tasks.safetensors"
"""Tensors of tasks that are not drawn again from their fields; most zoos have none."""
PARAMS, ROLLOUTS, SHARD_TABLE, SHARD_MANIFEST = (
    "params.safetensors",
    "rollouts.safetensors",
    "table.parquet",
    "shard.json",
)

SHARD_NAME = re.compile(r"[0-9]{5}")
KEY = re.compile(r"[A-Za-z0-9_.-]+")
DTYPE = "float32"
"""Dtype of every tensor of a zoo."""


class Damaged(ValueError):
    """A file of a zoo is damaged; `problem` completes a sentence that begins with its path."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path} {problem}.")
        self.path, self.problem = path, problem


def shard_name(index: int) -> str:
    """Folder name of a shard."""
    if not 0 <= index <= 99_999:
        raise ValueError(f"Shard {index} does not fit five digits; choose a larger `shard_size` in the recipe.")
    return f"{index:05d}"


def canonical(value: Any) -> str:
    """JSON on one line with sorted keys, equal values giving equal text; NaN is refused."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def pretty(value: Any) -> bytes:
    """JSON for people to read: sorted keys, indented, one newline at the end."""
    return (json.dumps(value, sort_keys=True, allow_nan=False, indent=1) + "\n").encode()


def content_version(sha256: str) -> str:
    """Three numbers for a dataset card, made from content.

    `datasets` serves old rows from its cache when a file is replaced under an unchanged version.
    """
    return f"1.{int(sha256[:7], 16)}.{int(sha256[7:14], 16)}"


def file_entry(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def is_intact(path: Path, entry: Mapping[str, Any] | None) -> bool:
    """Whether a file is there with the bytes that its entry says; without an entry it is not."""
    return entry is not None and path.is_file() and file_entry(path) == entry


def bytes_entry(data: bytes) -> dict[str, Any]:
    """Size in bytes and sha256 of a file that would hold `data`."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its digest, which detects edits."""
    return {**manifest, "digest": digest({k: v for k, v in manifest.items() if k != "digest"})}
