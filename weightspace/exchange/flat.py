"""Models as rows of flat weights, in Parquet files of bounded row groups, and back."""

from __future__ import annotations

import json
import math
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from weightspace import families, store
from weightspace.families import Family
from weightspace.spec import Params
from weightspace.store import Zoo

ROWS_PER_GROUP, BYTES_PER_GROUP, BYTES_PER_FILE = 512, 64 * 2**20, 2 * 2**30
"""The dataset viewer reads row groups of up to 300 MB, and whole files are best kept to a few gigabytes."""

FIELDS: dict[str, tuple[pa.DataType, str]] = {
    "model_id": (pa.string(), "Name of the model, as in `models`."),
    "step": (pa.int64(), "Updates of training before this snapshot, as in `models`."),
    "split": (pa.string(), "`train`, `val` or `test`, as in `models`."),
    "family": (pa.string(), "Class of the recurrent network."),
    "family_config": (pa.string(), "Sizes and options of the network (JSON)."),
    "names": (pa.list_(pa.string()), "Names of its tensors."),
    "shapes": (pa.list_(pa.list_(pa.int32())), "The shape of each."),
    "weights": (pa.list_(pa.float32()), "All tensors as trained, flat (row-major), one after another."),
}
"""Columns of the configuration `weights`, rows in the order of models.parquet."""

SCHEMA = pa.schema([pa.field(name, kind) for name, (kind, _) in FIELDS.items()])


class FlatModel(NamedTuple):
    """Names and shapes of the tensors of a row, and its flat weights (weight,)."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    weights: torch.Tensor


class RowGroup(NamedTuple):
    """One row group of a Parquet file: ranges of rows, each of one shard, and the bytes of their weights."""

    ranges: list[range]
    bytes: int


def write_weights(zoo: Zoo, folder: Path) -> list[Path]:
    """Write every row of a zoo into Parquet files of bounded size, shard by shard; returns the files in order."""
    parts = list(_in_files(_groups(zoo)))
    paths = [folder / f"train-{i:05d}-of-{len(parts):05d}.parquet" for i in range(len(parts))]
    with tqdm(total=zoo.num_rows, desc="export", unit=" rows", disable=not sys.stderr.isatty()) as bar:
        for path, groups in zip(paths, parts, strict=True):
            needed = sum(group.bytes for group in groups)
            with store.naming(path, needed), _writer(path) as writer:
                for group in groups:
                    table = pa.concat_tables([_rows(zoo, rows) for rows in group.ranges])
                    writer.write_table(table, row_group_size=ROWS_PER_GROUP)
                    bar.update(table.num_rows)
            store.flush(path)
    store.fsync_folder(folder)
    return paths


def _writer(path: Path) -> pq.ParquetWriter:
    described = [name for name in FIELDS if name != "weights"]
    # Floats compress better with their bytes apart, all exponents together.
    split = ["weights.list.element"]
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=described, use_byte_stream_split=split)


def _groups(zoo: Zoo) -> Iterator[RowGroup]:
    group: list[range] = []
    rows = size = 0
    for index in range(len(zoo.manifest["shards"])):
        spec = zoo.family_of(zoo.shard_rows(index).start).spec
        bytes_per_row = 4 * sum(int(np.prod(spec.shape(name), dtype=np.int64)) for name in spec.tensors)
        remaining = zoo.shard_rows(index)
        while remaining:
            rows_left = min(ROWS_PER_GROUP - rows, (BYTES_PER_GROUP - size) // bytes_per_row)
            if rows_left < 1 and rows:
                yield RowGroup(group, size)
                group, rows, size = [], 0, 0
                continue
            part, remaining = remaining[: max(rows_left, 1)], remaining[max(rows_left, 1) :]
            group.append(part)
            rows, size = rows + len(part), size + len(part) * bytes_per_row
    if group:
        yield RowGroup(group, size)


def _in_files(groups: Iterable[RowGroup]) -> Iterator[list[RowGroup]]:
    """Row groups collected into files of bounded size."""
    file_groups: list[RowGroup] = []
    for group in groups:
        if file_groups and sum(earlier.bytes for earlier in file_groups) + group.bytes > BYTES_PER_FILE:
            yield file_groups
            file_groups = []
        file_groups.append(group)
    if file_groups:
        yield file_groups


def _rows(zoo: Zoo, rows: range) -> pa.Table:
    """Rows of one shard as a table with the columns of `FIELDS`."""
    index, stack = zoo.shard_of(rows.start), zoo.stack(rows)
    for name, tensor in stack.params.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"'{name}' of shard {index:05d} is {tensor.dtype}; only torch.float32 can be exported.")
    flat = torch.cat([tensor.flatten(1) for tensor in stack.params.values()], dim=1).contiguous()
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * flat.shape[1])
    shapes = [list(tensor.shape[1:]) for tensor in stack.params.values()]
    table = zoo.shard_table(index).slice(rows.start - zoo.shard_rows(index).start, len(rows))
    columns: dict[str, Any] = {
        "names": [list(stack.params)] * len(rows),
        "shapes": [shapes] * len(rows),
        "weights": pa.ListArray.from_arrays(offsets, pa.array(flat.flatten().numpy())),
    }
    return pa.table({name: columns[name] if name in columns else table[name] for name in FIELDS}).cast(SCHEMA)


def model_of(row: Mapping[str, Any]) -> tuple[Family, Params]:
    """The family and params of a row of the configuration `weights`, bit for bit those of the zoo.

    Numbers may come as lists or arrays. ValueError where names, shapes and weights do not fit the family.
    """
    missing = sorted({"family", "family_config", "names", "shapes", "weights"} - set(row))
    if missing:
        raise ValueError(f"The row lacks {missing}; load the configuration 'weights' of the dataset.")
    names, shapes, flat = _flat_model(row)
    sizes = [math.prod(shape) for shape in shapes]
    is_consistent = len(shapes) == len(names) and sum(sizes) == len(flat)
    if not is_consistent or any(size < 1 for shape in shapes for size in shape):
        raise ValueError(
            f"{len(names)} names, shapes {str(shapes)[:200]} and {len(flat)} weights do not fit together."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"`names` of the row repeats one of {sorted(set(names))[:20]}; expected each tensor once.")
    family = families.load(str(row["family"]), _config(row["family_config"], len(flat)))
    pieces = flat.split(sizes)
    params = {name: piece.reshape(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
    family.spec.check(params, stacked=False)
    return family, params


def _flat_model(row: Mapping[str, Any]) -> FlatModel:
    try:
        names = [str(name) for name in row["names"]]
        shapes = [tuple(operator.index(size) for size in shape) for shape in row["shapes"]]
        flat = torch.from_numpy(np.array(row["weights"], dtype=np.float32))
    except (TypeError, ValueError, OverflowError):
        flat = torch.zeros(())
    if flat.dim() != 1:
        raise ValueError("`names`, `shapes` and `weights` of the row must be lists of text, of sizes and of numbers.")
    return FlatModel(names, shapes, flat)


def _config(text: Any, num_weights: int) -> dict[str, Any]:
    """The config of a family; refused, before memory is filled, if a size is above the number of weights."""
    try:
        config = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"`family_config` is not JSON: {str(text)[:80]!r}.") from None
    if not isinstance(config, dict):
        raise ValueError(f"`family_config` is {str(text)[:80]!r}, expected the fields of a family.")
    for key, value in config.items():
        if type(value) is int and value > num_weights:
            raise ValueError(
                f"`{key}` (={value}) of `family_config` is more than the {num_weights} weights have room for."
            )
    return config
