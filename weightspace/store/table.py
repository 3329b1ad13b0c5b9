"""The table of a zoo: the columns that every zoo has, and the checks of a table against them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from weightspace.store import documents
from weightspace.store.layout import KEY, MANIFEST, Damaged, canonical


@dataclass(frozen=True)
class Column:
    """One column that every zoo has: its type, its unit, its meaning, and its allowed values."""

    type: pa.DataType
    unit: str
    meaning: str
    values: tuple[str, ...] = ()
    """The allowed values; empty if all are."""
    nullable: bool = False


_TEXT, _WHOLE, _SIDES = pa.string(), pa.int64(), ("in", "out")
_DECLARED = {
    "model_id": Column(_TEXT, "", "Name of the model, the same at all its snapshots and in every build of the recipe."),
    "step": Column(_WHOLE, "updates", "Updates of training before this snapshot; 0 is the untrained model."),
    "family": Column(_TEXT, "", "Class of the recurrent network."),
    "task": Column(_TEXT, "", "Class of the task it was trained on, null where there is none.", nullable=True),
    "family_config": Column(_TEXT, "JSON", "Sizes and options of the network, from which its class rebuilds it."),
    "task_config": Column(_TEXT, "JSON", "Options of the task, with the model's own values.", nullable=True),
    "learning_config": Column(_TEXT, "JSON", "How it learned, with the model's own hyper-parameters."),
    "hidden_size": Column(_WHOLE, "units", "Units of its largest hidden layer."),
    "num_parameters": Column(_WHOLE, "scalars", "Trained parameters."),
    "seed": Column(_WHOLE, "", "Seed of the zoo, from which every random stream derives, keyed by model and purpose."),
    "status": Column(
        _TEXT,
        "",
        "`ok`, `untrained` (nothing was learned) or `diverged` (weights are the last finite ones).",
        values=("ok", "untrained", "diverged"),
    ),
    "diverged_step": Column(_WHOLE, "updates", "Update at which it diverged, null where it did not.", nullable=True),
    "split": Column(
        _TEXT,
        "",
        "`train`, `val` or `test`; all snapshots of a model are in one.",
        values=("train", "val", "test"),
    ),
    "split_task": Column(
        _TEXT,
        "",
        "`out` for models of the most extreme tasks, held out to test generalisation; else `in`.",
        values=_SIDES,
    ),
    "split_size": Column(
        _TEXT,
        "",
        "`out` for models of the largest size, held out to test generalisation; else `in`.",
        values=_SIDES,
    ),
    "fold_family": Column(_WHOLE, "", "Fold of the family, to hold whole families out."),
    "shard": Column(_WHOLE, "", "Shard of the zoo that holds the weights."),
    "row": Column(_WHOLE, "", "Place in that shard."),
}

COLUMNS = {name: (column.unit, column.meaning) for name, column in _DECLARED.items()}
"""Unit and meaning of each column of models.parquet but labels, which the manifest describes."""
SCHEMA = pa.schema([(name, column.type) for name, column in _DECLARED.items()])
"""Name and type of each column of models.parquet but labels, which are numbers."""


@dataclass(frozen=True)
class Part:
    """Expected content of the rows of one shard: its index, their number, their family and its sizes."""

    shard: int
    rows: int
    family: Mapping[str, Any]


def read_table(path: Path, labels: Collection[str], parts: Sequence[Part]) -> pa.Table:
    """The table of the shards `parts`, checked; Damaged names the first problem."""
    try:
        # Checked before reading: a few compressed bytes can expand to billions of rows.
        metadata = pq.read_metadata(path)
        promised = sum(part.rows for part in parts)
        if metadata.num_rows != promised:
            raise ValueError(f"has {metadata.num_rows} rows, {MANIFEST} says {promised}")
        check_schema(metadata.schema.to_arrow_schema(), labels)
        table = pq.read_table(path)
        table.validate(full=True)
        check_values(table, labels, parts)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(path, f"cannot be read: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise Damaged(path, str(error)) from None
    return table


def check_schema(schema: pa.Schema, labels: Collection[str]) -> None:
    """Raise ValueError, the end of a sentence, unless every expected column is present and of its type."""
    for name in schema.names:
        if not KEY.fullmatch(name):
            raise ValueError(f"has a column {name!r}; names may only use letters, digits, '_', '.' and '-'")
        if schema.names.count(name) > 1:
            raise ValueError(f"has the column '{name}' {schema.names.count(name)} times, expected once")
    for name in (*SCHEMA.names, *labels):
        if name not in schema.names:
            reason = "every zoo has" if name in SCHEMA.names else f"{MANIFEST} says is a label"
            raise ValueError(f"has no column '{name}', which {reason}")
    for field in schema:
        if field.name in SCHEMA.names:
            is_valid, expected = field.type == SCHEMA.field(field.name).type, SCHEMA.field(field.name).type
        elif field.name in labels:
            is_valid, expected = _is_number(field.type), "numbers"
        else:
            is_valid, expected = _is_number(field.type) or field.type in (pa.string(), pa.bool_()), "numbers or text"
        if not is_valid:
            raise ValueError(f"holds {field.type} in the column '{field.name}', expected {expected}")


def check_values(table: pa.Table, labels: Collection[str], parts: Sequence[Part]) -> None:
    """Raise ValueError, the end of a sentence, unless the cells of a table are valid in their columns."""
    for name, column in _DECLARED.items():
        if table[name].null_count and not column.nullable:
            raise ValueError(f"has no '{name}' in {table[name].null_count} rows")
        cells = table[name].unique().drop_null().to_pylist() if column.unit == "JSON" or column.values else []
        for text in cells:
            if column.values and text not in column.values:
                raise ValueError(f"has {text!r} as '{name}', expected one of {', '.join(column.values)}")
            if column.unit == "JSON":
                _mapping(name, text)
    for name in labels:
        if pc.any(pc.invert(pc.is_finite(table[name]))).as_py():
            raise ValueError(f"has values of the label '{name}' that are not finite, expected numbers or null")
    _check_positions(table, parts)


def _check_positions(table: pa.Table, parts: Sequence[Part]) -> None:
    """Raise ValueError unless rows have the shard and row number of their position, and the family of the shard."""
    sizes = [part.rows for part in parts]
    shards = np.repeat([part.shard for part in parts], sizes)
    rows = np.concatenate([np.arange(0), *map(np.arange, sizes)])
    for name, expected in (("shard", shards), ("row", rows)):
        misplaced = np.flatnonzero(table[name].to_numpy() != expected)
        if len(misplaced):
            row = int(misplaced[0])
            raise ValueError(f"says `{name}` {table[name][row]} in row {row}, expected {expected[row]}")
    families = {part.shard: part.family for part in parts}
    keys = ["shard", "family", "family_config"]
    for row in table.group_by(keys).aggregate([]).to_pylist():
        declared = families[row["shard"]]
        if row["family"] != declared["class"] or _mapping("family_config", row["family_config"]) != declared["config"]:
            raise ValueError(
                f"says of models of shard {row['shard']:05d} that they are {row['family']} {row['family_config']}, "
                f"expected {declared['class']} {canonical(declared['config'])}"
            )


def _mapping(name: str, text: str) -> Mapping[str, Any]:
    try:
        return documents.parse(text)
    except ValueError as error:
        raise ValueError(f"has a '{name}' that {error}") from None


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or kind in (pa.float32(), pa.float64())
