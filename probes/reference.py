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
    num_own: int
    embeddings: list[Embedding]
    title: str


def beside(zoo: Zoo, embeddings: Sequence[Embedding], reference: Path | str, file: Path | str) -> Mapped:
    """The rows of a zoo before those of a reference zoo that the same encoder has embedded in `file`.

    The table has a column `zoo`, and the labels that both zoos have. ValueError where no embedding of the zoo is of
    that encoder: places and distances in embeddings of two encoders have nothing to do with each other.
    """
    other = open_zoo(reference)
    (theirs,) = read_embeddings([file], other)
    same = [one for one in embeddings if one.encoder_digest and one.encoder_digest == theirs.encoder_digest]
    if not same:
        known = ", ".join(f"'{one.name}'" for one in embeddings) or "none"
        raise ValueError(
            f"{file} was not made by the encoder of any embedding of {zoo.path} ({known}); run `weightspace embed` on "
            "both zoos with one checkpoint, or on both without any."
        )
    titles = (zoo.path.resolve().name, PREFIX + other.path.resolve().name)
    table = pa.concat_tables(
        [_titled(zoo.table, titles[0]), _titled(_shared(other.table, zoo.table), titles[1], PREFIX)],
        promote_options="default",
    )
    return Mapped(read_rows(table), zoo.num_rows, [_joined(one, theirs) for one in same], titles[1])


def _shared(table: pa.Table, own: pa.Table) -> pa.Table:
    """The columns of a reference's table that the zoo's own has with the same type."""
    fields = {field.name: field.type for field in own.schema}
    needed = {*COLUMNS, *SPLIT_COLUMNS}
    return table.select([f.name for f in table.schema if f.name in needed or fields.get(f.name) == f.type])


def _titled(table: pa.Table, title: str, prefix: str = "") -> pa.Table:
    """A table with the column `zoo`, and names of models that no other zoo has."""
    names = pa.array([prefix + str(name) for name in table.column("model_id").to_pylist()])
    named = table.set_column(table.column_names.index("model_id"), "model_id", names)
    return named.append_column("zoo", pa.array([title] * table.num_rows))


def _joined(own: Embedding, theirs: Embedding) -> Embedding:
    """The embedding of both zoos' rows, the reference's last, for every split that the zoo's own was made for."""
    (values, *_) = theirs.made_for.values()
    return replace(own, made_for={key: np.concatenate([kept, values]) for key, kept in own.made_for.items()})
