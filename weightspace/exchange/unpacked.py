"""Zoos made again of what `weightspace export` wrote: of a folder, or of a dataset repository on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from weightspace import store
from weightspace.exchange.flat import CONFIGURATIONS, Configuration, family_of, tensors_of
from weightspace.exchange.replaced import RECORD, record
from weightspace.exchange.repository import is_repository, reaching
from weightspace.store import ShardContent
from weightspace.store.layout import MANIFEST, TABLE

logger = logging.getLogger(__name__)

MADE_ANEW = ("digest", "format", "num_models")
"""Entries of a manifest that follow from the files of the zoo."""


def located(source: str) -> Path:
    """The zoo's folder of an export: of its folder, or of a repository OWNER/NAME, whose files are downloaded.

    It is made once, in the cache of the Hub's client, and has the bytes of the zoo that was exported. No code comes
    with it: families are found by name. ValueError where a file is missing, damaged, or not what an export writes.
    """
    folder = Path(source)
    if not folder.exists():
        if not is_repository(source):
            raise ValueError(f"{source} is neither a folder nor a repository OWNER/NAME on the Hub.")
        folder = _downloaded(source)
    exported = record(folder)
    name = store.digest(exported)[:32]
    out = Path(huggingface_hub.constants.HF_HOME) / "weightspace" / name
    if not (out / MANIFEST).is_file():
        _refuse_damage(folder, exported["files"])
        out.mkdir(parents=True, exist_ok=True)
        with store.locked(out):
            _make(folder, exported, out)
    return out


def _downloaded(repo: str) -> Path:
    """The folder of a repository's files, in the cache of the Hub's client."""

    def download(name: str) -> Path:
        return Path(str(huggingface_hub.hf_hub_download(repo, name, repo_type="dataset")))

    with reaching(f"There is no folder {repo}, and the files of such a dataset cannot be read", writes=False):
        folder = download(RECORD).parent
        # Only what the record names, by names that an export has.
        for name in record(folder)["files"]:
            download(name)
    return folder


def _refuse_damage(folder: Path, files: Mapping[str, Any]) -> None:
    for name, entry in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"] or store.file_entry(path) != entry:
            raise ValueError(f"{path} is missing or not as it was exported; take another copy of the dataset.")


def _make(folder: Path, exported: Mapping[str, Any], out: Path) -> None:
    """Write the shards, tasks, table and manifest of a zoo."""
    head = {key: value for key, value in exported["zoo"].items() if key not in MADE_ANEW}
    if not isinstance(head.get("plan"), str) or not isinstance(head.get("recipe"), dict) or "labels" not in head:
        raise ValueError(f"{folder / RECORD} does not say how the zoo was made; export it again.")
    table = pq.read_table(folder / TABLE)
    counts = _rows_by_shard(table)
    files = {name: sorted(path for path in exported["files"] if path.startswith(f"{name}/")) for name in CONFIGURATIONS}
    parts = {name: _shards(folder, paths, counts) for name, paths in files.items() if paths}
    first = 0
    for index, count in enumerate(counts):
        read = {name: next(part) for name, part in parts.items()}
        rows = table.slice(first, count)
        store.write_shard(out, index, _content(rows, read), head["plan"])
        first += count
    if store.TASKS in exported["files"]:
        store.write_durably(out / store.TASKS, (folder / store.TASKS).read_bytes())
    title = head["recipe"].get("title", "A zoo of recurrent networks")
    manifest = store.finish(out, head, len(counts), title)
    if manifest["digest"] != exported["zoo"]["digest"]:
        # Parquet files have other bytes in another version of pyarrow.
        logger.warning("The zoo has another fingerprint than the exported one; its models and labels are the same.")


def _rows_by_shard(table: pa.Table) -> list[int]:
    """Number of rows of each shard; ValueError unless the table has the shards in their order."""
    shards = table["shard"].to_numpy() if "shard" in table.column_names else np.zeros(0)
    counts = np.bincount(shards.astype(np.int64)) if len(shards) and shards.min() == 0 else np.zeros(0, dtype=int)
    if not len(counts) or not counts.all() or (np.repeat(np.arange(len(counts)), counts) != shards).any():
        raise ValueError(f"{TABLE} does not have its shards in their order; it is not of a zoo.")
    return [int(count) for count in counts]


def _shards(folder: Path, names: Sequence[str], counts: Sequence[int]) -> Iterator[pa.Table]:
    """The rows of one shard after another, read a row group at a time."""
    waiting: list[pa.Table] = []
    groups = (
        file.read_row_group(number)
        for file in (pq.ParquetFile(folder / name) for name in names)
        for number in range(file.num_row_groups)
    )
    for count in counts:
        while sum(map(len, waiting)) < count:
            group = next(groups, None)
            if group is None:
                raise ValueError(f"{folder / names[0]} and the files beside it have fewer rows than {TABLE}.")
            waiting.append(group)
        rows = pa.concat_tables(waiting)
        yield rows.slice(0, count)
        waiting = [rows.slice(count)]


def _content(rows: pa.Table, read: Mapping[str, pa.Table]) -> ShardContent:
    """Content of a shard of its part of the table, and its rows of the other configurations."""
    for name, part in read.items():
        if any(part[column].to_pylist() != rows[column].to_pylist() for column in ("model_id", "step")):
            raise ValueError(f"The rows of '{name}' are not in the order of {TABLE}; take another copy of the dataset.")
    params, rollouts = (_tensors(read, name, CONFIGURATIONS[name]) for name in ("weights", "rollouts"))
    num_weights = sum(tensor[0].numel() for tensor in params.values())
    family = family_of(rows.slice(0, 1).to_pylist()[0], num_weights)
    return ShardContent(family=family, params=params, table=rows, rollouts=rollouts or None)


def _tensors(read: Mapping[str, pa.Table], name: str, configuration: Configuration) -> dict[str, Any]:
    return tensors_of(read[name], configuration) if name in read else {}
