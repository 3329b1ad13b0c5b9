"""New tables for the shards of a finished zoo: all written aside first, then put into place.

While they are put into place the zoo has no zoo.json, so that nobody reads a mixture of old and new; a crash in between
leaves a zoo that says it is unfinished, and everything needed to finish it in `.staging/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from weightspace.store.durable import STAGING, Staging, fsync_folder, publish, write_durably, write_flushed
from weightspace.store.layout import MANIFEST, SHARD_MANIFEST, SHARD_TABLE, SHARDS, bytes_entry, pretty, shard_name
from weightspace.store.manifest import check_manifest
from weightspace.store.writer import table_bytes

JOURNAL = "labelling.json"


def stage_table(zoo: Path, key: str, index: int, table: pa.Table) -> None:
    """Write the new table of one shard aside, whole or not at all; `key` names what the tables belong to."""
    folder = _folder(zoo, key)
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / f"{shard_name(index)}.parquet", table_bytes(table))
    fsync_folder(folder.parent)


def staged_tables(zoo: Path, key: str, num_shards: int) -> list[int]:
    """The shards whose new tables have been written aside."""
    return [index for index in range(num_shards) if (_folder(zoo, key) / f"{shard_name(index)}.parquet").is_file()]


def unfinished_labelling(zoo: Path) -> tuple[list[str], dict[str, Any]] | None:
    """Labels and old manifest of a labelling that was stopped while tables were put into place, or None."""
    journal = zoo / STAGING / JOURNAL
    if (zoo / MANIFEST).exists() or not journal.is_file():
        return None
    try:
        entry = json.loads(journal.read_bytes())
        names, manifest = [str(name) for name in entry["labels"]], entry["manifest"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{journal} is not what a stopped labelling leaves; build the zoo again.") from None
    check_manifest(manifest, str(journal))
    return names, manifest


def publish_tables(zoo: Path, key: str, plan: str, labels: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """Put the tables of all shards into place, as parts of the plan with the digest `plan`; `finish` must follow.

    `manifest` is the zoo's old one, which is kept with the names of the labels until then. May be repeated after a
    crash at any place.
    """
    journal = zoo / STAGING / JOURNAL
    write_durably(journal, pretty({"labels": list(labels), "manifest": manifest}))
    (zoo / MANIFEST).unlink(missing_ok=True)
    fsync_folder(zoo)
    with Staging(zoo) as staging:
        for shard in manifest["shards"]:
            folder = zoo / SHARDS / shard["name"]
            data = (_folder(zoo, key) / f"{shard['name']}.parquet").read_bytes()
            entry = json.loads((folder / SHARD_MANIFEST).read_bytes())
            entry = {**entry, "plan": plan, "files": {**entry["files"], SHARD_TABLE: bytes_entry(data)}}
            write_flushed(staging / SHARD_TABLE, data)
            write_flushed(staging / SHARD_MANIFEST, pretty(entry))
            publish(staging / SHARD_TABLE, folder / SHARD_TABLE)
            publish(staging / SHARD_MANIFEST, folder / SHARD_MANIFEST)


def _folder(zoo: Path, key: str) -> Path:
    return zoo / STAGING / f"tables-{key}"
