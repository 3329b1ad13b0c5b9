"""Names and numbers of the format: what a zoo folder contains, and how its files are identified."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

FORMAT = 1

MANIFEST, TABLE, CARD, SHARDS = "zoo.json", "models.parquet", "README.md", "shards"
PARAMS, ROLLOUTS, SHARD_TABLE, SHARD_MANIFEST = (
    "params.safetensors",
    "rollouts.safetensors",
    "table.parquet",
    "shard.json",
)

SHARD_NAME = re.compile(r"[0-9]{5}")
KEY = re.compile(r"[A-Za-z0-9_.-]+")

COLUMNS = {
    "model_id": ("", "Name of the model, the same at all its snapshots and in every build of the recipe."),
    "step": ("updates", "Updates of training before this snapshot; 0 is the untrained model."),
    "family": ("", "Class of the recurrent network."),
    "task": ("", "Class of the task it was trained on, null where there is none."),
    "family_config": ("JSON", "Sizes and options of the network, from which its class rebuilds it."),
    "task_config": ("JSON", "Options of the task, with the model's own values."),
    "learning_config": ("JSON", "How it learned, with the model's own hyper-parameters."),
    "hidden_size": ("units", "Units of its largest hidden layer."),
    "num_parameters": ("scalars", "Trained parameters."),
    "seed": ("", "Seed of the zoo, from which every random stream derives, keyed by model and purpose."),
    "status": ("", "`ok`, `untrained` (step 0) or `diverged` (weights are the last finite ones)."),
    "diverged_step": ("updates", "Update at which it diverged, null where it did not."),
    "split": ("", "`train`, `val` or `test`; all snapshots of a model are in one."),
    "split_task": ("", "`out` for models of the most extreme tasks, held out to test generalisation; else `in`."),
    "split_size": ("", "`out` for models of the largest size, held out to test generalisation; else `in`."),
    "fold_family": ("", "Fold of the family, to hold whole families out."),
    "shard": ("", "Shard of the zoo that holds the weights."),
    "row": ("", "Place in that shard."),
}
"""Unit and meaning of each column of models.parquet, labels aside: theirs stand in the manifest."""


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
    """JSON for a file people open: sorted keys, indented, one newline at the end."""
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


def bytes_entry(data: bytes) -> dict[str, Any]:
    """Size in bytes and sha256 of a file that would hold `data`."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own digest, by which an edit of it is noticed."""
    return {**manifest, "digest": digest({k: v for k, v in manifest.items() if k != "digest"})}
