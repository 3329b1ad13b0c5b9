"""Verification of a zoo: every file against the manifest, and the content of intact files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from weightspace.store.layout import MANIFEST, PARAMS, SHARD_MANIFEST, SHARDS, TABLE, Damaged, file_entry
from weightspace.store.manifest import read_manifest
from weightspace.store.reader import Zoo
from weightspace.store.shards import read_entry
from weightspace.store.table import check_schema
from weightspace.store.writer import table_bytes
from weightspace.terminal import shows_bars


@dataclass(frozen=True)
class Fault:
    """One fault of a zoo: a path inside it, and the problem."""

    path: str
    problem: str


def verify(zoo: Path) -> list[Fault]:
    """Every fault of a zoo, in the order of its files, with a bar of its shards in a terminal."""
    if not zoo.is_dir():
        raise ValueError(f"{zoo} is not a folder; give the folder that `zoo-builder build --out` made.")
    try:
        opened = Zoo(zoo, read_manifest(zoo))
    except ValueError as error:
        return [Fault(MANIFEST, str(error))]
    return list(_faults(opened))


def _faults(zoo: Zoo) -> Iterator[Fault]:
    from tqdm import tqdm

    faults = [fault for name, entry in zoo.manifest["files"].items() for fault in _file_faults(zoo.path, name, entry)]
    yield from faults
    damaged = False
    for index in tqdm(range(len(zoo.shards)), desc="verify", unit=" shards", disable=not shows_bars()):
        for fault in _shard_faults(zoo, index):
            damaged = True
            yield fault
    if not damaged and TABLE not in {fault.path for fault in faults}:
        yield from _table_faults(zoo)
    names = {shard.entry["name"] for shard in zoo.shards}
    if (zoo.path / SHARDS).is_dir():
        for extra in sorted(path.name for path in (zoo.path / SHARDS).iterdir() if path.name not in names):
            yield Fault(f"{SHARDS}/{extra}", f"is not in {MANIFEST}")


def _shard_faults(zoo: Zoo, index: int) -> Iterator[Fault]:
    shard = zoo.shards[index]
    folder, files = zoo.path / shard.folder, shard.entry["files"]
    if not folder.is_dir():
        yield Fault(shard.folder, "the shard is missing")
        return
    faults = [f for name, entry in files.items() for f in _file_faults(zoo.path, f"{shard.folder}/{name}", entry)]
    # The content is checked only where the bytes are intact.
    yield from faults or _content_faults(zoo, index)
    for extra in sorted(path.name for path in folder.iterdir() if path.name not in files):
        yield Fault(f"{shard.folder}/{extra}", f"is not in {MANIFEST}")


def _file_faults(zoo: Path, name: str, expected: Mapping[str, Any]) -> Iterator[Fault]:
    path = zoo / name
    if not path.is_file():
        yield Fault(name, "is missing")
    elif not path.resolve().is_relative_to(zoo.resolve()):
        yield Fault(name, "is a link out of the zoo")
    else:
        entry = file_entry(path)
        if entry["bytes"] != expected["bytes"]:
            yield Fault(name, f"has {entry['bytes']} bytes, expected {expected['bytes']}")
        elif entry["sha256"] != expected["sha256"]:
            yield Fault(name, f"has sha256 {entry['sha256'][:12]}..., expected {expected['sha256'][:12]}...")


def _content_faults(zoo: Zoo, index: int) -> Iterator[Fault]:
    """Faults in the content of a shard whose bytes are intact."""
    shard = zoo.shards[index]
    try:
        plan, entry = read_entry(zoo.path, index)
        if (plan, entry) != (zoo.manifest["plan"], shard.entry):
            yield Fault(f"{shard.folder}/{SHARD_MANIFEST}", f"does not say of the shard what {MANIFEST} says")
        shard.check()
        table = shard.table()
        # Weights of a diverged model may be infinite or NaN.
        has_diverged = pc.equal(table["status"], "diverged").to_pylist()
        broken = [i for i in shard.not_finite() if not has_diverged[i]]
    except Damaged as error:
        yield Fault(error.path.relative_to(zoo.path).as_posix(), error.problem)
        return
    except ValueError as error:
        yield Fault(shard.folder, str(error))
        return
    if broken:
        row, name = zoo.shard_rows(index)[broken[0]], table["model_id"][broken[0]]
        problem = f"holds weights that are not finite in {len(broken)} rows, first those of '{name}' in row {row}"
        yield Fault(f"{shard.folder}/{PARAMS}", problem)


def _table_faults(zoo: Zoo) -> Iterator[Fault]:
    """Differences between the zoo's table and its concatenated shards' tables; memory is bounded."""
    num_models = 0
    try:
        with pq.ParquetFile(zoo.path / TABLE) as file:
            check_schema(file.schema_arrow, zoo.manifest["labels"])
            rows = _Rows(file)
            for shard in zoo.shards:
                promised = shard.table()
                num_models += pc.count_distinct(promised["model_id"]).as_py()
                if not _same(rows.take(promised.num_rows), promised):
                    yield Fault(TABLE, f"does not hold the rows of shard {shard.entry['name']} as they are there")
            if rows.take(1).num_rows:
                yield Fault(TABLE, f"has more rows than {MANIFEST} says")
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Fault(TABLE, " ".join(str(error).split()))
        return
    if num_models != zoo.manifest["num_models"]:
        yield Fault(MANIFEST, f"says that there are {zoo.manifest['num_models']} models, the shards have {num_models}")


class _Rows:
    """The rows of a table one after another."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._batches = file.iter_batches(batch_size=4096)
        self._left = file.schema_arrow.empty_table()

    def take(self, count: int) -> pa.Table:
        """The next rows, fewer at the end."""
        while self._left.num_rows < count:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._left = pa.concat_tables([self._left, pa.Table.from_batches([batch])])
        rows, self._left = self._left.slice(0, count), self._left.slice(count)
        return rows


def _same(table: pa.Table, promised: pa.Table) -> bool:
    # Tables with NaN never compare equal, so their bytes are compared.
    return table.equals(promised) or table_bytes(table) == table_bytes(promised)
