"""The files of one shard, checked on reading against the declaration: names, dtypes, shapes, column types."""

from __future__ import annotations

import stat
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import safetensors
import torch
from torch import Tensor

from weightspace import families
from weightspace.families import Family
from weightspace.spec import Params
from weightspace.store.inside import refuse_outside
from weightspace.store.layout import DTYPE, KEY, MANIFEST, PARAMS, ROLLOUTS, SHARD_TABLE, SHARDS, Damaged
from weightspace.store.table import Part, read_table

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "BOOL": "bool",
}
"""Names of dtypes in safetensors -> in torch; error messages show others as they are."""


class Stored(NamedTuple):
    """Dtype and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


class ShardFiles:
    """One shard of a zoo, by its entry in the manifest; content is checked before it is returned."""

    def __init__(self, zoo: Path, entry: Mapping[str, Any], labels: Collection[str]) -> None:
        self.zoo, self.entry, self.labels = zoo, entry, labels
        self.family = families.load(entry["family"]["class"], entry["family"]["config"])
        self.folder = f"{SHARDS}/{entry['name']}"

    @property
    def part(self) -> Part:
        """The expected content of the shard's rows of a table."""
        return Part(int(self.entry["name"]), self.entry["rows"], self.entry["family"])

    def check(self) -> None:
        """Raise Damaged if a file is not of its size or does not hold what is declared; weights are not read."""
        self.table()
        for name in (PARAMS, ROLLOUTS):
            if name in self.entry["files"]:
                self._read(name, None)

    def table(self) -> pa.Table:
        """The shard's part of the table."""
        return read_table(self._promised(SHARD_TABLE), self.labels, [self.part])

    @cached_property
    def task(self) -> str | None:
        """The task of all models of the shard; None where they have none, or not the same one."""
        names = self.table()["task"].unique().to_pylist()
        return names[0] if len(names) == 1 else None

    def params(self, indices: Sequence[int]) -> Params:
        """Raw params (models, ...) of the rows of these indices in the shard."""
        return self._read(PARAMS, indices)

    @property
    def has_rollouts(self) -> bool:
        """Whether inputs and outputs are stored with the models."""
        return ROLLOUTS in self.entry["files"]

    def rollouts(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs (models, sequences, time, input) and outputs (models, sequences, time, output) of these rows."""
        if not self.has_rollouts:
            raise ValueError(f"Shard {self.entry['name']} of {self.zoo} was built without `rollouts`.")
        stored = self._read(ROLLOUTS, indices)
        return stored["x"], stored["outputs"]

    def not_finite(self) -> list[int]:
        """Indices of the rows whose weights are not all finite; a few models are read at a time."""
        parts = [range(first, min(first + 256, self.entry["rows"])) for first in range(0, self.entry["rows"], 256)]
        return [part[i] for part in parts for i in (~finite(self.params(part))).nonzero()[:, 0].tolist()]

    def _promised(self, name: str) -> Path:
        return promised(self.zoo, f"{self.folder}/{name}", self.entry["files"][name]["bytes"])

    def _read(self, name: str, indices: Sequence[int] | None) -> dict[str, Tensor]:
        """Rows of the tensors of a mapped file: only these are read; of None, no tensor."""
        path = self._promised(name)
        tensors = {}
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dict
                stored = {
                    key: Stored(_DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape()))
                    for key, part in slices.items()
                }
                check_tensors(name, self.family, self.entry["rows"], stored)
                if indices is not None:
                    tensors = {key: _rows(part, indices) for key, part in slices.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise Damaged(path, f"cannot be read: {' '.join(str(error).split())}") from None
        except ValueError as error:
            raise Damaged(path, f"does not hold what is declared: {str(error).removesuffix('.')}") from None
        return tensors


def finite(params: Params) -> Tensor:
    """Whether all weights of a model are finite numbers (models,), bool."""
    return torch.stack([tensor.flatten(1).isfinite().all(1) for tensor in params.values()]).all(0)


def _rows(stored: Any, indices: Sequence[int]) -> Tensor:
    first, last = min(indices), max(indices) + 1
    rows: Tensor = stored[first:last]
    if list(indices) == list(range(first, last)):
        return rows
    return rows[torch.tensor(indices) - first]


def check_tensors(name: str, family: Family, num_rows: int, tensors: Mapping[str, Stored]) -> None:
    """Raise ValueError unless the tensors of a file, by name, have the declared dtypes and shapes (rows, ...)."""
    for key, (dtype, shape) in tensors.items():
        if not KEY.fullmatch(key):
            raise ValueError(f"a tensor named {key!r}; names may only use letters, digits, '_', '.' and '-'")
        if dtype != DTYPE:
            raise ValueError(f"'{key}' is {dtype}, expected {DTYPE}")
        if shape[:1] != (num_rows,):
            raise ValueError(f"'{key}' has shape {shape}, expected {num_rows} rows first")
    if name == PARAMS:
        family.spec.check({key: torch.empty(item.shape, device="meta") for key, item in tensors.items()}, stacked=True)
        return
    shapes = {key: item.shape for key, item in tensors.items()}
    ends = {"x": family.input_size, "outputs": family.output_size}
    if set(shapes) != set(ends):
        raise ValueError(f"tensors {sorted(shapes)}, expected x and outputs")
    for key, size in ends.items():
        if len(shapes[key]) != 4 or shapes[key] != (*shapes["x"][:3], size):
            raise ValueError(f"'{key}' has shape {shapes[key]}, expected (rows, sequences, time, {size}) as x has")


def promised(zoo: Path, relative: str, num_bytes: int) -> Path:
    """The path of a promised file; Damaged if it is missing or not of its size, ValueError if outside the folder."""
    path = zoo / relative
    try:
        status = path.stat()
    except OSError:
        raise Damaged(path, "is missing") from None
    refuse_outside(zoo, path)
    if not stat.S_ISREG(status.st_mode):
        raise Damaged(path, "is no file")
    if status.st_size != num_bytes:
        raise Damaged(path, f"has {status.st_size} bytes, {MANIFEST} says {num_bytes}")
    return path
