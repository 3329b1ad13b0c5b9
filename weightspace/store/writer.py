"""The writing side of a zoo: shards one at a time, then the merged table, the card and the manifest."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
from torch import Tensor

from weightspace.families import Family
from weightspace.spec import Params
from weightspace.store.card import card
from weightspace.store.durable import Staging, empty_staging, flush, fsync_folder, naming, publish, write_flushed
from weightspace.store.layout import (
    CARD,
    FORMAT,
    KEY,
    MANIFEST,
    PARAMS,
    ROLLOUTS,
    SHARD_MANIFEST,
    SHARD_TABLE,
    SHARDS,
    TABLE,
    bytes_entry,
    file_entry,
    pretty,
    sealed,
    shard_name,
)

ROWS_PER_GROUP = 16_384


class OtherPlan(ValueError):
    """A shard that is there was made for another plan."""


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """What one shard holds: rows of one family at one size."""

    family: Family
    params: Params
    """Raw params (rows, ...)."""
    table: pa.Table
    """The rows' part of models.parquet."""
    rollouts: Mapping[str, Tensor] | None = None
    """`x` (rows, sequences, time, input) and `outputs` (rows, sequences, time, output), or None."""

    def files(self) -> dict[str, bytes]:
        """The bytes of the shard's files by name."""
        self.family.spec.check(self.params, stacked=True)
        files = {PARAMS: _tensor_bytes(self.params, self.table.num_rows)}
        if self.rollouts is not None:
            files[ROLLOUTS] = _tensor_bytes(self.rollouts, self.table.num_rows)
        files[SHARD_TABLE] = table_bytes(self.table)
        return files


def write_shard(zoo: Path, index: int, content: ShardContent, plan: str) -> None:
    """Put one shard into place, whole or not at all; `plan` is the digest of the plan it belongs to.

    A shard of the same name that is already there is left as it is.
    """
    target = zoo / SHARDS / shard_name(index)
    files = content.files()
    family = {"class": type(content.family).__name__, "config": content.family.config}
    entry = {
        "format": FORMAT,
        "plan": plan,
        "family": family,
        "rows": content.table.num_rows,
        "files": {name: bytes_entry(data) for name, data in files.items()},
    }
    files[SHARD_MANIFEST] = pretty(entry)
    with Staging(zoo) as staging, naming(target, sum(map(len, files.values()))):
        folder = staging / target.name
        folder.mkdir()
        for name, data in files.items():
            write_flushed(folder / name, data)
        fsync_folder(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Who comes second has the same bytes.
        with contextlib.suppress(FileExistsError), _not_empty_exists():
            os.rename(folder, target)
        fsync_folder(target.parent)
        fsync_folder(zoo)


@contextlib.contextmanager
def _not_empty_exists() -> Iterator[None]:
    """Renaming onto a folder fails with one of two error numbers; make it the one with a class of its own."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(*error.args) from error
        raise


def remove_shard(zoo: Path, index: int) -> None:
    """Take a damaged shard away, if it is there, so that it can be built again."""
    target = zoo / SHARDS / shard_name(index)
    if not target.exists():
        return
    with Staging(zoo) as staging:
        os.rename(target, staging / target.name)
        fsync_folder(target.parent)


def absent_shards(zoo: Path, num_shards: int) -> list[int]:
    """Indices of the shards that are not there."""
    folder = zoo / SHARDS
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return [index for index in range(num_shards) if shard_name(index) not in there]


def good_shards(zoo: Path, indices: Iterable[int], plan: str) -> tuple[list[int], dict[int, str]]:
    """Which of these shards are there whole, and what is wrong with the others that are there.

    Raises ValueError if one belongs to another plan than `plan`.
    """
    good, bad = [], {}
    for index in indices:
        folder = zoo / SHARDS / shard_name(index)
        if folder.exists():
            problem = shard_problem(folder, plan)
            if problem is None:
                good.append(index)
            else:
                bad[index] = problem
    return good, bad


def shard_problem(folder: Path, plan: str) -> str | None:
    """What is wrong with a shard by its own manifest, every byte read, or None."""
    try:
        entry = json.loads((folder / SHARD_MANIFEST).read_bytes())
        if entry["plan"] != plan:
            raise OtherPlan(f"{folder} belongs to another plan, recipe or version. Use another folder for this build.")
        for name, expected in entry["files"].items():
            if name not in (PARAMS, ROLLOUTS, SHARD_TABLE):
                return f"{SHARD_MANIFEST} names a file {name!r}, which no shard has"
            if file_entry(folder / name) != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OtherPlan:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{SHARD_MANIFEST} cannot be read"
    return None


def finish(zoo: Path, head: Mapping[str, Any], num_shards: int, title: str) -> dict[str, Any]:
    """Merge the shards' tables, write the card and, last of all, the manifest, which is returned.

    `head` is the manifest's own content (`generator`, `executor`, `recipe`, `families`, `labels`, `plan`). Raises
    ValueError if a shard is missing or damaged.
    """
    if num_shards < 1:
        raise ValueError(f"{zoo} would have no shards, and a zoo has at least one.")
    names = [shard_name(index) for index in range(num_shards)]
    good, bad = good_shards(zoo, range(num_shards), head["plan"])
    if len(good) < num_shards:
        missing = {i: "is missing" for i in range(num_shards) if i not in good and i not in bad}
        index, problem = min({**bad, **missing}.items())
        raise ValueError(f"Shard {shard_name(index)}: {problem}. Run the same build again to replace it.")
    with Staging(zoo) as staging:
        schema = _merge_tables([zoo / SHARDS / name / SHARD_TABLE for name in names], staging / TABLE)
        table = file_entry(staging / TABLE)
        shards = [_manifest_entry(zoo / SHARDS / name) for name in names]
        num_rows = sum(shard["rows"] for shard in shards)
        text = card(title, schema, num_rows, table, head).encode()
        write_flushed(staging / CARD, text)
        files = {TABLE: {**table, "rows": num_rows}, CARD: bytes_entry(text)}
        manifest = sealed({**head, "format": FORMAT, "files": files, "shards": shards})
        write_flushed(staging / MANIFEST, pretty(manifest))
        for name in (TABLE, CARD, MANIFEST):
            publish(staging / name, zoo / name)
    empty_staging(zoo)
    return manifest


def _manifest_entry(folder: Path) -> dict[str, Any]:
    entry = json.loads((folder / SHARD_MANIFEST).read_bytes())
    files = {**entry["files"], SHARD_MANIFEST: file_entry(folder / SHARD_MANIFEST)}
    return {"name": folder.name, "family": entry["family"], "rows": entry["rows"], "files": files}


def _merge_tables(paths: Sequence[Path], target: Path) -> pa.Schema:
    """Write the tables one after another, in row groups of bounded size; returns their schema."""
    schema = pq.read_schema(paths[0])
    needed = sum(path.stat().st_size for path in paths)
    with naming(target, needed):
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in _bounded(paths):
                writer.write_table(batch, row_group_size=ROWS_PER_GROUP)
        flush(target)
    return schema


def _bounded(paths: Sequence[Path]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for path in paths:
        waiting.append(pq.read_table(path, memory_map=False))
        if sum(table.num_rows for table in waiting) >= ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _tensor_bytes(tensors: Mapping[str, Tensor], num_rows: int) -> bytes:
    """safetensors bytes without metadata, whose order would be random."""
    for name, tensor in tensors.items():
        if not KEY.fullmatch(name):
            raise ValueError(f"Tensor name {name!r} may only use letters, digits, '_', '.' and '-'.")
        if tensor.shape[:1] != (num_rows,):
            raise ValueError(f"'{name}' has shape {tuple(tensor.shape)}, expected {num_rows} rows first.")
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def table_bytes(table: pa.Table) -> bytes:
    """Parquet bytes of a shard's table, the same however its columns lie in memory."""
    sink = pa.BufferOutputStream()
    # Zstandard, and dictionaries of numbers, take thrice the time for as many bytes: a shard has few rows.
    repeated = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(table.combine_chunks(), sink, compression="snappy", use_dictionary=repeated)
    return sink.getvalue().to_pybytes()
