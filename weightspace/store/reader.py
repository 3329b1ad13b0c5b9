"""The reading side of a zoo: its table, and stacks of models straight from memory-mapped shards."""

from __future__ import annotations

import bisect
import contextlib
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.spec import Params, WeightSpec
from weightspace.store.label_columns import refuse_missing_column
from weightspace.store.layout import MANIFEST, TABLE, Damaged
from weightspace.store.manifest import read_manifest
from weightspace.store.shard_files import ShardFiles, finite, promised
from weightspace.store.table import read_table
from weightspace.store.task_io import TaskIO


class Model(NamedTuple):
    """One model: its family, and its params without a models axis."""

    family: Family
    params: Params


@dataclass(frozen=True)
class Stack:
    """Rows of one family at one size: raw params (models, ...) and the rows of models.parquet they belong to."""

    family: Family
    params: Params
    rows: Tensor
    io: TaskIO | None = None
    """Inputs and outputs of the task that the models learned, None where that is not known."""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Stack:
        """The same stack on another device."""
        params = {name: tensor.to(device) for name, tensor in self.params.items()}
        return replace(self, params=params, rows=self.rows.to(device))

    @property
    def models(self) -> list[Model]:
        """The models one by one."""
        return [Model(self.family, {k: v[i] for k, v in self.params.items()}) for i in range(len(self))]

    @property
    def effective(self) -> tuple[WeightSpec, Params]:
        """Declaration and stacked effective params (models, ...): those that the functions use."""
        if type(self.family).effective is Family.effective:
            return self.family.spec, self.params
        return self.family.effective_spec, torch.func.vmap(self.family.effective)(self.params)

    @property
    def finite(self) -> Tensor:
        """Whether all weights of a model are finite (models,), bool."""
        return finite(self.params)


class Zoo:
    """A finished zoo, opened for reading; weights are read lazily."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.shards = [ShardFiles(path, entry, manifest["labels"]) for entry in manifest["shards"]]
        self._ends = list(accumulate(shard["rows"] for shard in manifest["shards"]))

    def __repr__(self) -> str:
        families = Counter(shard["family"]["class"] for shard in self.manifest["shards"] for _ in range(shard["rows"]))
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(families.items()))
        return f"Zoo({str(self.path)!r}: {self.manifest['num_models']:,} models in {self.num_rows:,} rows: {counts})"

    def __len__(self) -> int:
        return self.num_rows

    @overload
    def __getitem__(self, index: int) -> Model: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int]) -> Selection: ...

    def __getitem__(self, index: int | slice | Sequence[int]) -> Model | Selection:
        """The model of one row, negative ones from the end; or a selection of several."""
        return Selection(self, range(self.num_rows))[index]

    def __iter__(self) -> Iterator[Model]:
        return iter(Selection(self, range(self.num_rows)))

    def filter(self, **wanted: Any) -> Selection:
        """The rows whose columns have these values: one, a list of several, or a condition such as `lambda v: v > 1`.

        Rows whose column is null are in none of a condition. ValueError where the table has no such column.
        """
        return Selection(self, range(self.num_rows)).filter(**wanted)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the manifest, which changes with any promised byte."""
        digest: str = self.manifest["digest"]
        return digest

    @property
    def num_rows(self) -> int:
        """Number of rows of the table: models times snapshots."""
        return self._ends[-1] if self._ends else 0

    @cached_property
    def table(self) -> pa.Table:
        """models.parquet, one row per (model, snapshot)."""
        with self._with_way_out():
            path = promised(self.path, TABLE, self.manifest["files"][TABLE]["bytes"])
            table = read_table(path, self.manifest["labels"], [shard.part for shard in self.shards])
            num_models, expected = pc.count_distinct(table["model_id"]).as_py(), self.manifest["num_models"]
            if num_models != expected:
                raise Damaged(path, f"has {num_models} models, {MANIFEST} says {expected}")
        return table

    def shard_of(self, row: int) -> int:
        """Index of the shard that holds a row."""
        if not 0 <= row < self.num_rows:
            raise ValueError(f"There is no row {row}; the zoo has {self.num_rows}.")
        return bisect.bisect_right(self._ends, row)

    def family_of(self, row: int) -> Family:
        """The family, at its size, of a row."""
        return self.shards[self.shard_of(row)].family

    def stacks(self, rows: Sequence[int] | None = None, max_models: int = 256) -> Iterator[Stack]:
        """Stacks of at most `max_models`, each of one shard, rows in the order asked (all rows unless given)."""
        if rows is None:
            for end, shard in zip(self._ends, self.manifest["shards"], strict=True):
                for first in range(end - shard["rows"], end, max_models):
                    yield self.stack(range(first, min(first + max_models, end)))
            return
        for group in _by_shard([int(row) for row in rows], self._ends):
            for first in range(0, len(group), max_models):
                yield self.stack(group[first : first + max_models])

    def stack(self, rows: Sequence[int]) -> Stack:
        """The models of these rows, in this order, all of one shard."""
        index, places = self._locate(rows)
        shard = self.shards[index]
        with self._with_way_out():
            params, io = shard.params(places), self._io(shard)
        ordered = {name: params[name] for name in shard.family.spec.tensors}
        return Stack(shard.family, ordered, torch.as_tensor(list(rows)), io)

    def not_finite(self, rows: Sequence[int] | None = None) -> list[int]:
        """The rows (of all rows unless given) whose weights are not all finite numbers; every weight is read."""
        return [row for stack in self.stacks(rows) for row in stack.rows[~stack.finite].tolist()]

    def shard(self, index: int) -> tuple[Stack, pa.Table]:
        """All models of one shard, and its part of the table."""
        return self.stack(self.shard_rows(index)), self.shard_table(index)

    def shard_rows(self, index: int) -> range:
        """The rows of one shard."""
        return range(self._ends[index] - self.manifest["shards"][index]["rows"], self._ends[index])

    def shard_table(self, index: int) -> pa.Table:
        """One shard's part of the table."""
        with self._with_way_out():
            return self.shards[index].table()

    def rollouts(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Stored inputs (models, sequences, time, input) and outputs (models, sequences, time, output) of the rows."""
        index, places = self._locate(rows)
        with self._with_way_out():
            return self.shards[index].rollouts(places)

    def _io(self, shard: ShardFiles) -> TaskIO | None:
        """Inputs and outputs of the task of a shard's models, None where they have none or an older version built."""
        tasks = self.manifest.get("tasks", {})
        if not any("input_kind" in task for task in tasks.values()) or shard.task not in tasks:
            return None
        return TaskIO.from_json(tasks[shard.task], shard.family.input_size)

    @contextlib.contextmanager
    def _with_way_out(self) -> Iterator[None]:
        try:
            yield
        except Damaged as error:
            raise ValueError(f"{error} Run `zoo-builder verify {self.path}` to see what is damaged.") from None

    def _locate(self, rows: Sequence[int]) -> tuple[int, list[int]]:
        if len(rows) == 0:
            raise ValueError("A stack needs at least one row.")
        shards = {self.shard_of(int(row)) for row in rows}
        if len(shards) > 1:
            raise ValueError(f"Rows of one stack must be of one shard; these are of {sorted(shards)}.")
        index = shards.pop()
        start = self.shard_rows(index).start
        return index, [int(row) - start for row in rows]


class Selection:
    """Rows of a zoo in an order of choice: a view, which reads weights when they are asked for."""

    def __init__(self, zoo: Zoo, rows: Sequence[int]) -> None:
        self.zoo, self.rows = zoo, rows

    def __repr__(self) -> str:
        return f"Selection({len(self):,} of {self.zoo!r})"

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Model: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int]) -> Selection: ...

    def __getitem__(self, index: int | slice | Sequence[int]) -> Model | Selection:
        """The model at one place, negative ones from the end; or a selection of several."""
        if isinstance(index, slice):
            return Selection(self.zoo, self.rows[index])
        if hasattr(index, "__len__"):
            return Selection(self.zoo, [self.rows[i] for i in cast(Sequence[int], index)])
        # IndexError at the end, which also ends `for` loops.
        return self.zoo.stack([self.rows[operator.index(index)]]).models[0]

    def __iter__(self) -> Iterator[Model]:
        for stack in self.stacks():
            yield from stack.models

    @property
    def table(self) -> pa.Table:
        """The rows' part of models.parquet, in their order."""
        return self.zoo.table.take(pa.array(list(self.rows), pa.int64()))

    def stacks(self, max_models: int = 256) -> Iterator[Stack]:
        """Stacks of at most `max_models`, each of one shard, in the order of the rows."""
        return self.zoo.stacks(self.rows, max_models)

    def filter(self, **wanted: Any) -> Selection:
        """The rows whose columns have these values, as `Zoo.filter`."""
        kept = np.ones(len(self), dtype=bool)
        for name, value in wanted.items():
            refuse_missing_column(name, self.zoo.table.column_names, self.zoo.path)
            choices = value if isinstance(value, list | tuple | set) else [value]
            cells = self.table[name].to_pylist()
            if callable(value):
                kept &= [cell is not None and bool(value(cell)) for cell in cells]
            else:
                kept &= [cell in choices for cell in cells]
        return Selection(self.zoo, [row for row, keep in zip(self.rows, kept, strict=True) if keep])


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
    """Open a finished zoo folder; ValueError names the problem and the way out."""
    path = Path(path)
    return Zoo(path, read_manifest(path))
