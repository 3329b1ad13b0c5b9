"""The writing side of a zoo: shards one at a time, then the merged table, the card and the manifest."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.torch
from torch import Tensor

from weightspace.families import Family
from weightspace.spec import Params
from weightspace.store.card import card
from weightspace.store.durable import Staging, empty_staging, flush, fsync_folder, naming, publish, write_flushed
from weightspace.store.inside import refuse_links
from weightspace.store.layout import (
    CARD,
    FORMAT,
    MANIFEST,
    PARAMS,
    ROLLOUTS,
    SHARD_MANIFEST,
    SHARD_TABLE,
    SHARDS,
    TABLE,
    TASKS,
    bytes_entry,
    file_entry,
    pretty,
    sealed,
    shard_name,
)
from weightspace.store.manifest import check_manifest
from weightspace.store.shard_files import Stored, check_tensors
from weightspace.store.shards import good_shards, own_json, read_entry
from weightspace.store.table import Part, check_schema, check_values

ROWS_PER_GROUP = 16_384


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """Content of one shard: rows of one family at one size."""

    family: Family
    params: Params
    """Raw params (rows, ...)."""
    table: pa.Table
    """The rows' part of models.parquet."""
    rollouts: Mapping[str, Tensor] | None = None
    """`x` (rows, sequences, time, input) and `outputs` (rows, sequences, time, output), or None."""

    def files(self, index: int) -> dict[str, bytes]:
        """File name -> bytes, of the shard with this index; content that readers would refuse is refused."""
        num_rows = self.table.num_rows
        tensors = {PARAMS: self.params, **({} if self.rollouts is None else {ROLLOUTS: self.rollouts})}
        for name, stored in tensors.items():
            described = {k: Stored(str(v.dtype).removeprefix("torch."), tuple(v.shape)) for k, v in stored.items()}
            check_tensors(name, self.family, num_rows, described)
        try:
            check_schema(self.table.schema, ())
            check_values(self.table, (), [Part(index, num_rows, _described(self.family))])
        except ValueError as error:
            raise ValueError(f"The table of shard {shard_name(index)} {error}.") from None
        files = {name: _tensor_bytes(stored) for name, stored in tensors.items()}
        return files | {SHARD_TABLE: table_bytes(self.table)}


def _described(family: Family) -> dict[str, Any]:
    return {"class": type(family).__name__, "config": family.config}


def write_shard(zoo: Path, index: int, content: ShardContent, plan: str) -> None:
    """Write one shard atomically; `plan` is the digest of the plan it belongs to.

    An existing shard of the same name is not replaced.
    """
    target = zoo / SHARDS / shard_name(index)
    refuse_links(zoo, f"{SHARDS}/{target.name}")
    files = content.files(index)
    described = {name: bytes_entry(data) for name, data in files.items()}
    files[SHARD_MANIFEST] = pretty(own_json(plan, _described(content.family), content.table.num_rows, described))
    with Staging(zoo) as staging, naming(target, sum(map(len, files.values()))):
        folder = staging / target.name
        folder.mkdir()
        for name, data in files.items():
            write_flushed(folder / name, data)
        fsync_folder(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Losing the race is harmless: the other writer wrote the same bytes.
        with contextlib.suppress(FileExistsError), _not_empty_exists():
            os.rename(folder, target)
        fsync_folder(target.parent)
        fsync_folder(zoo)


@contextlib.contextmanager
def _not_empty_exists() -> Iterator[None]:
    """Turn ENOTEMPTY into FileExistsError: renaming onto a folder raises one or the other."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(*error.args) from error
        raise


def finish(zoo: Path, head: Mapping[str, Any], num_shards: int, title: str) -> dict[str, Any]:
    """Merge the shards' tables, write the card and, last of all, the manifest, which is returned.

    `head` is the part of the manifest that does not describe files: `generator`, `executor`, `recipe`, `families`,
    `labels`, `plan`. Raises ValueError if a shard is missing or damaged.
    """
    if num_shards < 1:
        raise ValueError(f"{zoo} would have no shards, and a zoo has at least one.")
    refuse_links(zoo, *(f"{SHARDS}/{shard_name(index)}" for index in range(num_shards)), TABLE, CARD, TASKS, MANIFEST)
    intact, problems = good_shards(zoo, range(num_shards), head["plan"])
    if len(intact) < num_shards:
        absent = {i: "is missing" for i in range(num_shards) if i not in intact and i not in problems}
        index, problem = min({**problems, **absent}.items())
        raise ValueError(f"Shard {shard_name(index)}: {problem}. Run the same build again to replace it.")
    shards = [read_entry(zoo, index).entry for index in range(num_shards)]
    with Staging(zoo) as staging:
        tables = [zoo / SHARDS / shard["name"] / SHARD_TABLE for shard in shards]
        schema, num_models = _merge_tables(tables, staging / TABLE)
        table = file_entry(staging / TABLE)
        num_rows = sum(shard["rows"] for shard in shards)
        text = card(title, schema, num_rows, table, head).encode()
        write_flushed(staging / CARD, text)
        files = {TABLE: {**table, "rows": num_rows}, CARD: bytes_entry(text)}
        files |= {TASKS: file_entry(zoo / TASKS)} if (zoo / TASKS).is_file() else {}
        content = {**head, "format": FORMAT, "num_models": num_models, "files": files, "shards": shards}
        manifest = sealed(content)
        check_manifest(manifest, str(zoo / MANIFEST))
        write_flushed(staging / MANIFEST, pretty(manifest))
        for name in (TABLE, CARD, MANIFEST):
            publish(staging / name, zoo / name)
    empty_staging(zoo)
    return manifest


def _merge_tables(paths: Sequence[Path], target: Path) -> tuple[pa.Schema, int]:
    """Write the tables one after another, in row groups of bounded size; returns their schema and number of models."""
    schema, num_models = pq.read_schema(paths[0]), 0
    needed = sum(path.stat().st_size for path in paths)
    with naming(target, needed):
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for tables in _bounded(paths):
                # All snapshots of a model are in one shard.
                num_models += sum(pc.count_distinct(table["model_id"]).as_py() for table in tables)
                writer.write_table(pa.concat_tables(tables), row_group_size=ROWS_PER_GROUP)
        flush(target)
    return schema, num_models


def _bounded(paths: Sequence[Path]) -> Iterator[list[pa.Table]]:
    tables: list[pa.Table] = []
    for path in paths:
        tables.append(pq.read_table(path, memory_map=False))
        if sum(table.num_rows for table in tables) >= ROWS_PER_GROUP:
            yield tables
            tables = []
    if tables:
        yield tables


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """safetensors bytes without metadata, whose order would be random."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def table_bytes(table: pa.Table) -> bytes:
    """Parquet bytes of a shard's table, independent of the memory layout of its columns."""
    sink = pa.BufferOutputStream()
    # Zstandard, and dictionaries of numbers, take three times as long for as many bytes: a shard has few rows.
    repeated = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(table.combine_chunks(), sink, compression="snappy", use_dictionary=repeated)
    content: bytes = sink.getvalue().to_pybytes()
    return content
