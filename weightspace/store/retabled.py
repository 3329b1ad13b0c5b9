"""Replacement of the tables of a finished zoo: all are written to `.staging/` first, then renamed into place.

During the renames the zoo has no zoo.json, so that a mixture of old and new tables is never read; a crash in between
leaves an unfinished zoo, and everything needed to finish it in `.staging/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from weightspace.store import documents
from weightspace.store.durable import (
    JOURNAL,
    STAGING,
    TABLES,
    Staging,
    fsync_folder,
    publish,
    write_durably,
    write_flushed,
)
from weightspace.store.inside import refuse_links
from weightspace.store.layout import MANIFEST, SHARD_MANIFEST, SHARD_TABLE, SHARDS, bytes_entry, pretty, shard_name
from weightspace.store.manifest import check_manifest
from weightspace.store.shards import own_json, read_entry
from weightspace.store.writer import table_bytes


class Labelling(NamedTuple):
    """A labelling that was stopped: the names of its labels, and the manifest before it."""

    labels: list[str]
    manifest: dict[str, Any]


def stage_table(zoo: Path, key: str, index: int, table: pa.Table) -> None:
    """Write the new table of one shard atomically into the staging folder of the labelling `key`."""
    folder = _folder(zoo, key)
    refuse_links(zoo, f"{STAGING}/{folder.name}")
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / f"{shard_name(index)}.parquet", table_bytes(table))
    fsync_folder(folder.parent)


def staged_tables(zoo: Path, key: str, num_shards: int) -> list[int]:
    """Indices of the shards whose new tables have been staged."""
    return [index for index in range(num_shards) if (_folder(zoo, key) / f"{shard_name(index)}.parquet").is_file()]


def unfinished_labelling(zoo: Path) -> Labelling | None:
    """Labels and old manifest of a labelling that was stopped during the renames, or None."""
    journal = zoo / STAGING / JOURNAL
    if (zoo / MANIFEST).exists() or not journal.is_file():
        return None
    try:
        entry = documents.read(journal)
        names, manifest = [str(name) for name in entry["labels"]], entry["manifest"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{journal} is not what a stopped labelling leaves; build the zoo again.") from None
    check_manifest(manifest, str(journal))
    return Labelling(names, manifest)


def publish_tables(zoo: Path, key: str, plan: str, labels: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """Rename the tables of all shards into place, as parts of the plan with the digest `plan`; `finish` must follow.

    `manifest` is the zoo's old one, which is kept in a journal with the names of the labels until then. After a crash
    the call can be repeated.
    """
    refuse_links(zoo, MANIFEST, f"{STAGING}/{JOURNAL}", *(f"{SHARDS}/{shard['name']}" for shard in manifest["shards"]))
    journal = zoo / STAGING / JOURNAL
    write_durably(journal, pretty({"labels": list(labels), "manifest": manifest}))
    (zoo / MANIFEST).unlink(missing_ok=True)
    fsync_folder(zoo)
    with Staging(zoo) as staging:
        for index, shard in enumerate(manifest["shards"]):
            folder = zoo / SHARDS / shard["name"]
            data = (_folder(zoo, key) / f"{shard['name']}.parquet").read_bytes()
            entry = read_entry(zoo, index).entry
            files = {name: entry["files"][name] for name in entry["files"] if name != SHARD_MANIFEST}
            files[SHARD_TABLE] = bytes_entry(data)
            write_flushed(staging / SHARD_TABLE, data)
            write_flushed(staging / SHARD_MANIFEST, pretty(own_json(plan, entry["family"], entry["rows"], files)))
            publish(staging / SHARD_TABLE, folder / SHARD_TABLE)
            publish(staging / SHARD_MANIFEST, folder / SHARD_MANIFEST)


def _folder(zoo: Path, key: str) -> Path:
    return zoo / STAGING / f"{TABLES}{key}"
