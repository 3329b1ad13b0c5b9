"""The reading side of a zoo: its table, and stacks of models straight from memory-mapped shards."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import torch
from torch import Tensor

from weightspace import families
from weightspace.families import Family
from weightspace.spec import Params, WeightSpec
from weightspace.store.layout import (
    KEY,
    MANIFEST,
    PARAMS,
    ROLLOUTS,
    SHARD_TABLE,
    SHARDS,
    TABLE,
)
from weightspace.store.manifest import read_manifest

_NAMES = "names may only use letters, digits, '_', '.' and '-'"


@dataclass(frozen=True)
class Stack:
    """Rows of one family at one size: raw params (models, ...) and the rows of models.parquet they belong to."""

    family: Family
    params: Params
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Stack:
        """The same stack on another device."""
        return Stack(self.family, {k: v.to(device) for k, v in self.params.items()}, self.rows.to(device))

    @property
    def effective(self) -> tuple[WeightSpec, Params]:
        """What the models really use: its declaration and stacked params (models, ...)."""
        return self.family.effective_spec, torch.func.vmap(self.family.effective)(self.params)


class Zoo:
    """A finished zoo, opened for reading; weights are read when asked for."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self._ends = list(accumulate(shard["rows"] for shard in manifest["shards"]))
        self._families = [families.load(s["family"]["class"], s["family"]["config"]) for s in manifest["shards"]]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the manifest, which changes with any promised byte."""
        return self.manifest["digest"]

    @property
    def num_rows(self) -> int:
        """Number of rows of the table: models times snapshots."""
        return self._ends[-1] if self._ends else 0

    @cached_property
    def table(self) -> pa.Table:
        """models.parquet, one row per (model, snapshot)."""
        path = self._inside(TABLE, self.manifest["files"][TABLE]["bytes"])
        table = self._table(path, self.num_rows)
        missing = [name for name in self.manifest["labels"] if name not in table.column_names]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}, which {MANIFEST} says is a label.{self._way_out}")
        return table

    def shard_of(self, row: int) -> int:
        """Index of the shard that holds a row."""
        if not 0 <= row < self.num_rows:
            raise ValueError(f"There is no row {row}; the zoo has {self.num_rows}.")
        return bisect.bisect_right(self._ends, row)

    def family_of(self, row: int) -> Family:
        """The family, at its size, of a row."""
        return self._families[self.shard_of(row)]

    def stacks(self, rows: Sequence[int] | None = None, max_models: int = 256) -> Iterator[Stack]:
        """Stacks of at most `max_models`, each of one shard, rows ascending (all rows unless given)."""
        if rows is None:
            for end, shard in zip(self._ends, self.manifest["shards"], strict=True):
                for first in range(end - shard["rows"], end, max_models):
                    yield self.stack(range(first, min(first + max_models, end)))
            return
        for group in _by_shard(sorted(int(row) for row in rows), self._ends):
            for first in range(0, len(group), max_models):
                yield self.stack(group[first : first + max_models])

    def stack(self, rows: Sequence[int]) -> Stack:
        """The models of these rows, in this order, all of one shard."""
        index, inside = self._locate(rows)
        family = self._families[index]
        params = self._read(index, PARAMS, inside)
        try:
            family.spec.check(params, stacked=True)
        except ValueError as error:
            raise ValueError(f"Shard {self._name(index)}, {PARAMS}: {error}{self._way_out}") from None
        return Stack(family, {name: params[name] for name in family.spec.tensors}, torch.as_tensor(list(rows)))

    def shard(self, index: int) -> tuple[Stack, pa.Table]:
        """All models of one shard, and its part of the table."""
        return self.stack(self.shard_rows(index)), self.shard_table(index)

    def shard_rows(self, index: int) -> range:
        """The rows of one shard."""
        return range(self._ends[index] - self.manifest["shards"][index]["rows"], self._ends[index])

    def shard_table(self, index: int) -> pa.Table:
        """One shard's part of the table."""
        entry = self.manifest["shards"][index]
        path = self._inside(f"{SHARDS}/{entry['name']}/{SHARD_TABLE}", entry["files"][SHARD_TABLE]["bytes"])
        return self._table(path, entry["rows"])

    def rollouts(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Stored inputs (models, sequences, time, input) and outputs (models, sequences, time, output) of the rows."""
        index, inside = self._locate(rows)
        if ROLLOUTS not in self.manifest["shards"][index]["files"]:
            raise ValueError(f"Shard {self._name(index)} of {self.path} was built without `rollouts`.")
        stored = self._read(index, ROLLOUTS, inside)
        if set(stored) != {"x", "outputs"}:
            raise ValueError(
                f"Shard {self._name(index)}, {ROLLOUTS}: holds {sorted(stored)}, not x and outputs.{self._way_out}"
            )
        return stored["x"], stored["outputs"]

    def _table(self, path: Path, num_rows: int) -> pa.Table:
        """A table, if it has as many rows as promised: a few bytes can stand for billions."""
        try:
            found = pq.read_metadata(path)
            if found.num_rows != num_rows:
                raise ValueError(f"{path} has {found.num_rows} rows, {MANIFEST} says {num_rows}.{self._way_out}")
            strange = [name for name in found.schema.names if not KEY.fullmatch(name)]
            if strange:
                raise ValueError(f"{path} has a column {strange[0]!r}; {_NAMES}.")
            return pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}.{self._way_out}") from None

    def _name(self, index: int) -> str:
        return self.manifest["shards"][index]["name"]

    @property
    def _way_out(self) -> str:
        return f" Run `zoo-builder verify {self.path}` to see what is damaged."

    def _locate(self, rows: Sequence[int]) -> tuple[int, list[int]]:
        if len(rows) == 0:
            raise ValueError("A stack needs at least one row.")
        shards = {self.shard_of(int(row)) for row in rows}
        if len(shards) > 1:
            raise ValueError(f"Rows of one stack must be of one shard; these are of {sorted(shards)}.")
        index = shards.pop()
        start = self.shard_rows(index).start
        return index, [int(row) - start for row in rows]

    def _inside(self, relative: str, num_bytes: int) -> Path:
        """The path of a promised file, if it is in the folder, of its size and not a link out of it."""
        path = self.path / relative
        try:
            found = path.stat().st_size
        except OSError:
            raise ValueError(f"{path} is missing.{self._way_out}") from None
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise ValueError(f"{path} is a link out of the zoo, which is refused.")
        if found != num_bytes:
            raise ValueError(f"{path} has {found} bytes, {MANIFEST} says {num_bytes}.{self._way_out}")
        return path

    def _read(self, index: int, name: str, inside: list[int]) -> dict[str, Tensor]:
        """Rows of every tensor of one shard file; the file is mapped, so that only these rows are read."""
        shard = self.manifest["shards"][index]
        path = self._inside(f"{SHARDS}/{shard['name']}/{name}", shard["files"][name]["bytes"])
        consecutive = inside == list(range(inside[0], inside[0] + len(inside)))
        tensors = {}
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    _check_stored(path, key, file.get_slice(key).get_shape(), shard["rows"])
                    if consecutive:
                        tensors[key] = file.get_slice(key)[inside[0] : inside[0] + len(inside)]
                    else:
                        tensors[key] = file.get_tensor(key)[torch.tensor(inside)]
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}.{self._way_out}") from None
        return tensors


def _check_stored(path: Path, key: str, shape: Sequence[int], num_rows: int) -> None:
    if not KEY.fullmatch(key):
        raise ValueError(f"{path} holds a tensor named {key!r}; {_NAMES}.")
    if list(shape[:1]) != [num_rows]:
        raise ValueError(f"{path}: '{key}' has shape {tuple(shape)}, but {MANIFEST} says {num_rows} rows.")


def _by_shard(rows: list[int], ends: list[int]) -> Iterator[list[int]]:
    group: list[int] = []
    for row in rows:
        if group and bisect.bisect_right(ends, row) != bisect.bisect_right(ends, group[0]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def open_zoo(path: str | Path) -> Zoo:
    """Open a finished zoo folder; ValueError says what is wrong with it and the way out."""
    path = Path(path)
    return Zoo(path, read_manifest(path))
