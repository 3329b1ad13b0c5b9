"""A reference zoo beside the zoo that is looked at: both on one map, so that models have neighbours there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from probes.feature_sets import Embedding, read_embeddings
from probes.problem import COLUMNS, SPLIT_COLUMNS, Rows, read_rows
from weightspace.store import Zoo, open_zoo

PREFIX = "reference: "


@dataclass(frozen=True)
class Mapped:
    """Rows of a zoo and, after them, of its reference, with the embeddings (rows, embedding_dim) of both."""

    rows: Rows
    num_rows: int
    embeddings: list[Embedding]
    title: str


def beside(zoo: Zoo, embeddings: Sequence[Embedding], reference: Path | str, file: Path | str) -> Mapped:
    """The rows of a zoo before those of a reference zoo that the same encoder has embedded in `file`.

    The table has a column `zoo`, and the labels that both zoos have. ValueError where no embedding of the zoo is of
    that encoder: places and distances in embeddings of two encoders have nothing to do with each other.
    """
    other = open_zoo(reference)
    (theirs,) = read_embeddings([file], other)
    same = [read for read in embeddings if read.encoder_digest and read.encoder_digest == theirs.encoder_digest]
    if not same:
        known = ", ".join(f"'{read.name}'" for read in embeddings) or "none"
        raise ValueError(
            f"{file} was not made by the encoder of any embedding of {zoo.path} ({known}); run `weightspace embed` on "
            "both zoos with one checkpoint, or on both without any."
        )
    titles = (zoo.path.resolve().name, PREFIX + other.path.resolve().name)
    table = pa.concat_tables(
        [_titled(zoo.table, titles[0]), _titled(_shared(other.table, zoo.table), titles[1], PREFIX)],
        promote_options="default",
    )
    return Mapped(read_rows(table), zoo.num_rows, [_joined(read, theirs) for read in same], titles[1])


def _shared(table: pa.Table, zoo_table: pa.Table) -> pa.Table:
    """The columns of a reference's table that the zoo's table has with the same type."""
    fields = {field.name: field.type for field in zoo_table.schema}
    needed = {*COLUMNS, *SPLIT_COLUMNS}
    return table.select([f.name for f in table.schema if f.name in needed or fields.get(f.name) == f.type])


def _titled(table: pa.Table, title: str, prefix: str = "") -> pa.Table:
    """A table with the column `zoo`, and names of models that no other zoo has."""
    names = pa.array([prefix + str(name) for name in table.column("model_id").to_pylist()])
    named = table.set_column(table.column_names.index("model_id"), "model_id", names)
    return named.append_column("zoo", pa.array([title] * table.num_rows))


def _joined(embedding: Embedding, theirs: Embedding) -> Embedding:
    """The embedding of both zoos' rows, the reference's last, for every split of the zoo's embedding."""
    (values, *_) = theirs.made_for.values()
    made_for = {key: np.concatenate([kept, values]) for key, kept in embedding.made_for.items()}
    return replace(embedding, made_for=made_for)
