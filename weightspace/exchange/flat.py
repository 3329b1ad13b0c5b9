"""Models as rows of flat weights, in Parquet files of bounded row groups, and back."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from weightspace.terminal import shows_bars

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

ROLLOUT_FIELDS: dict[str, tuple[pa.DataType, str]] = {
    **{name: FIELDS[name] for name in ("model_id", "step", "split")},
    "names": (pa.list_(pa.string()), "`x` and `outputs`; nothing where the zoo stores none of the model."),
    "shapes": (pa.list_(pa.list_(pa.int32())), "The shape of each, (sequences, time, input or output)."),
    "numbers": (pa.list_(pa.float32()), "Inputs, then the model's outputs on them, flat (row-major)."),
}
"""Columns of the configuration `rollouts`, rows in the order of models.parquet."""


class FlatModel(NamedTuple):
    """Names and shapes of the tensors of a row, and its flat weights (weight,)."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    weights: torch.Tensor


class Configuration(NamedTuple):
    """One configuration of a dataset: its fields, the tensors (models, ...) of rows of one shard, which are flat in the
    field `flat`, and how many numbers the tensors of one row have."""

    fields: Mapping[str, tuple[pa.DataType, str]]
    flat: str
    tensors: Callable[[Zoo, range], Mapping[str, torch.Tensor]]
    numbers: Callable[[Zoo, int], int]

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types."""
        return pa.schema([pa.field(name, kind) for name, (kind, _) in self.fields.items()])


class RowGroup(NamedTuple):
    """One row group of a Parquet file: ranges of rows, each of one shard, and the bytes of their tensors."""

    ranges: list[range]
    bytes: int


def write_rows(zoo: Zoo, folder: Path, configuration: Configuration) -> list[Path]:
    """Write every row of a zoo into Parquet files of bounded size, shard by shard; returns the files in order."""
    parts = list(_in_files(_groups(zoo, configuration)))
    paths = [folder / f"train-{i:05d}-of-{len(parts):05d}.parquet" for i in range(len(parts))]
    with tqdm(total=zoo.num_rows, desc=folder.name, unit=" rows", disable=not shows_bars()) as bar:
        for path, groups in zip(paths, parts, strict=True):
            needed = sum(group.bytes for group in groups)
            with store.naming(path, needed), _writer(path, configuration) as writer:
                for group in groups:
                    table = pa.concat_tables([_rows(zoo, rows, configuration) for rows in group.ranges])
                    writer.write_table(table, row_group_size=ROWS_PER_GROUP)
                    bar.update(table.num_rows)
            store.flush(path)
    store.fsync_folder(folder)
    return paths


def _writer(path: Path, configuration: Configuration) -> pq.ParquetWriter:
    described = [name for name in configuration.fields if name != configuration.flat]
    # Floats compress better with their bytes apart, all exponents together.
    split = [f"{configuration.flat}.list.element"]
    options = {"compression": "zstd", "use_dictionary": described, "use_byte_stream_split": split}
    return pq.ParquetWriter(path, configuration.schema, **options)


def _groups(zoo: Zoo, configuration: Configuration) -> Iterator[RowGroup]:
    group: list[range] = []
    rows = size = 0
    for index in range(len(zoo.manifest["shards"])):
        remaining = zoo.shard_rows(index)
        bytes_per_row = max(4 * configuration.numbers(zoo, remaining.start), 1)
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


def _rows(zoo: Zoo, rows: range, configuration: Configuration) -> pa.Table:
    """Rows of one shard as a table with the columns of a configuration."""
    index, tensors = zoo.shard_of(rows.start), configuration.tensors(zoo, rows)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"'{name}' of shard {index:05d} is {tensor.dtype}; only torch.float32 can be exported.")
    flat = torch.cat([torch.zeros(len(rows), 0), *(tensor.flatten(1) for tensor in tensors.values())], 1).contiguous()
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * flat.shape[1])
    shapes = [list(tensor.shape[1:]) for tensor in tensors.values()]
    table = zoo.shard_table(index).slice(rows.start - zoo.shard_rows(index).start, len(rows))
    columns: dict[str, Any] = {
        "names": pa.array([list(tensors)] * len(rows), configuration.fields["names"][0]),
        "shapes": pa.array([shapes] * len(rows), configuration.fields["shapes"][0]),
        configuration.flat: pa.ListArray.from_arrays(offsets, pa.array(flat.flatten().numpy())),
    }
    ordered = {name: columns[name] if name in columns else table[name] for name in configuration.fields}
    return pa.table(ordered).cast(configuration.schema)


def _weights(zoo: Zoo, rows: range) -> Mapping[str, torch.Tensor]:
    return zoo.stack(rows).params


def _num_weights(zoo: Zoo, row: int) -> int:
    spec = zoo.family_of(row).spec
    return sum(math.prod(spec.shape(name)) for name in spec.tensors)


def _rollouts(zoo: Zoo, rows: range) -> Mapping[str, torch.Tensor]:
    if not zoo.shards[zoo.shard_of(rows.start)].has_rollouts:
        return {}
    return dict(zip(("x", "outputs"), zoo.rollouts(rows), strict=True))


def _num_rolled(zoo: Zoo, row: int) -> int:
    return sum(tensor.numel() for tensor in _rollouts(zoo, range(row, row + 1)).values())


CONFIGURATIONS = {
    "weights": Configuration(FIELDS, "weights", _weights, _num_weights),
    "rollouts": Configuration(ROLLOUT_FIELDS, "numbers", _rollouts, _num_rolled),
}
"""Configurations beside `models`, each in a folder of its name; `rollouts` is that of zoos that store some."""


def tensors_of(rows: pa.Table, configuration: Configuration) -> dict[str, torch.Tensor]:
    """The tensors (models, ...) of rows of one shard; ValueError unless all rows have the same, of the same shapes."""
    names, shapes = (rows[name].to_pylist() for name in ("names", "shapes"))
    flat = torch.from_numpy(np.array(rows[configuration.flat].combine_chunks().flatten(), dtype=np.float32))
    sizes = [math.prod(shape) for shape in shapes[0]]
    is_alike = all(name == names[0] for name in names) and all(shape == shapes[0] for shape in shapes)
    is_whole = len(names[0]) == len(set(names[0])) == len(sizes) and min(sizes, default=1) > 0
    if not is_alike or not is_whole or len(flat) != len(rows) * sum(sizes):
        raise ValueError(f"The rows of '{configuration.flat}' of one shard do not have the same tensors.")
    pieces = flat.reshape(len(rows), -1).split(sizes, dim=1) if sizes else ()
    pairs = zip(names[0], shapes[0], pieces, strict=True)
    return {name: piece.reshape(len(rows), *shape).contiguous() for name, shape, piece in pairs}


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
    family = family_of(row, len(flat))
    pieces = flat.split(sizes)
    params = {name: piece.reshape(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
    family.spec.check(params, stacked=False)
    return family, params


def family_of(row: Mapping[str, Any], num_weights: int) -> Family:
    """The family of a row; refused, before memory is filled, if a size is above the number of weights."""
    return families.load(str(row["family"]), _config(row["family_config"], num_weights))


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
