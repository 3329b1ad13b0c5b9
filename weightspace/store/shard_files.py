"""The files of one shard, read only as what is declared: each tensor's name, dtype and shape, each column's type."""

from __future__ import annotations

import stat
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

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
"""Names of dtypes in safetensors, for messages that refuse them."""


class ShardFiles:
    """One shard of a zoo, by its entry in the manifest; what its files hold is checked before it is handed out."""

    def __init__(self, zoo: Path, entry: Mapping[str, Any], labels: Collection[str]) -> None:
        self.zoo, self.entry, self.labels = zoo, entry, labels
        self.family = families.load(entry["family"]["class"], entry["family"]["config"])
        self.folder = f"{SHARDS}/{entry['name']}"

    @property
    def part(self) -> Part:
        """The shard, row count and family that the table's rows must name."""
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

    def params(self, places: Sequence[int]) -> Params:
        """Raw params (places, ...) of the models at these places of the shard."""
        return self._read(PARAMS, places)

    def rollouts(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs (places, sequences, time, input) and outputs (places, sequences, time, output)."""
        if ROLLOUTS not in self.entry["files"]:
            raise ValueError(f"Shard {self.entry['name']} of {self.zoo} was built without `rollouts`.")
        stored = self._read(ROLLOUTS, places)
        return stored["x"], stored["outputs"]

    def not_finite(self) -> list[int]:
        """The places of the models whose weights are not all finite numbers, read a few at a time."""
        parts = [range(first, min(first + 256, self.entry["rows"])) for first in range(0, self.entry["rows"], 256)]
        return [part[i] for part in parts for i in (~finite(self.params(part))).nonzero()[:, 0].tolist()]

    def _promised(self, name: str) -> Path:
        return promised(self.zoo, f"{self.folder}/{name}", self.entry["files"][name]["bytes"])

    def _read(self, name: str, places: Sequence[int] | None) -> dict[str, Tensor]:
        """The tensors of a file at some places; the file is mapped, so that only these are read, none if None."""
        path = self._promised(name)
        tensors = {}
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dict
                found = {
                    key: (_DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape()))
                    for key, part in slices.items()
                }
                check_tensors(name, self.family, self.entry["rows"], found)
                if places is not None:
                    tensors = {key: _rows(part, places) for key, part in slices.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise Damaged(path, f"cannot be read: {' '.join(str(error).split())}") from None
        except ValueError as error:
            raise Damaged(path, f"does not hold what is declared: {str(error).removesuffix('.')}") from None
        return tensors


def finite(params: Params) -> Tensor:
    """Whether all weights of a model are finite numbers (models,), bool."""
    return torch.stack([tensor.flatten(1).isfinite().all(1) for tensor in params.values()]).all(0)


def _rows(stored: Any, places: Sequence[int]) -> Tensor:
    first, last = min(places), max(places) + 1
    rows = stored[first:last]
    if list(places) == list(range(first, last)):
        return rows
    return rows[torch.tensor(places) - first]


def check_tensors(
    name: str, family: Family, num_rows: int, found: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Raise ValueError unless the tensors of a file, by name, have the declared dtypes and shapes (rows, ...)."""
    for key, (dtype, shape) in found.items():
        if not KEY.fullmatch(key):
            raise ValueError(f"a tensor named {key!r}; names may only use letters, digits, '_', '.' and '-'")
        if dtype != DTYPE:
            raise ValueError(f"'{key}' is {dtype}, expected {DTYPE}")
        if shape[:1] != (num_rows,):
            raise ValueError(f"'{key}' has shape {shape}, expected {num_rows} rows first")
    if name == PARAMS:
        family.spec.check({key: torch.empty(shape, device="meta") for key, (_, shape) in found.items()}, stacked=True)
        return
    shapes = {key: shape for key, (_, shape) in found.items()}
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
        found = path.stat()
    except OSError:
        raise Damaged(path, "is missing") from None
    refuse_outside(zoo, path)
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(path, "is no file")
    if found.st_size != num_bytes:
        raise Damaged(path, f"has {found.st_size} bytes, {MANIFEST} says {num_bytes}")
    return path
