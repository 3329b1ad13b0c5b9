"""Splits of a zoo: which rows may be learned from and which are held out, by the stored columns alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa

from weightspace.components.discovery import refuse_unknown_name
from weightspace.store.layout import digest

SplitName = Literal["in_distribution", "new_task", "new_size", "new_family"]


class NothingHeldOutError(ValueError):
    """A zoo has no models that a split would hold out, or no others to learn from."""


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """What a split holds out: the rows where `column` of models.parquet has the value `held_out`.

    Where `held_out` is None the split has folds, and each value of the column is held out in one of them. `seen_cells`
    says whether training has models of the held-out models' cells (family x size x class of task x step). `way_out` is
    what a recipe says to have such rows.
    """

    column: str
    held_out: str | None
    description: str
    seen_cells: bool
    way_out: str


SPLITS: Mapping[str, Splitting] = {
    "in_distribution": Splitting(
        column="split",
        held_out="test",
        description="unseen models of the families, sizes and tasks that training has seen",
        seen_cells=True,
        way_out="splits: {test: 0.2}",
    ),
    "new_task": Splitting(
        column="split_task",
        held_out="out",
        description="models whose task has parameters beyond those that training has seen",
        seen_cells=True,
        way_out="splits: {out_of_distribution: {task_share: 0.15}}, with a task whose parameters vary",
    ),
    "new_size": Splitting(
        column="split_size",
        held_out="out",
        description="models larger than those that training has seen",
        seen_cells=False,
        way_out="splits: {out_of_distribution: {largest_size: true}}, with more than one hidden_size",
    ),
    "new_family": Splitting(
        column="fold_family",
        held_out=None,
        description="models of families that training has not seen, each fold of families held out in turn",
        seen_cells=False,
        way_out="two classes of families or more",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Division:
    """Masks (rows) of a zoo's table for one split, or one fold of it.

    train: rows to fit on (models of the zoo's `train` that are not held out). val: rows to choose by, in the same way.
    test: all rows that are held out, whatever `split` says of them, for none of them is fitted on or chosen by. Rows of
    the zoo's `test` that are not held out take no part. All snapshots of a model are in the same mask.
    """

    split: SplitName
    fold: int | None
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    models: str
    """Names which model is in which mask: equal for zoos that hold the same models divided in the same way."""

    @property
    def name(self) -> str:
        """The split, with its fold if it has folds."""
        return split_title(self.split, self.fold)

    @property
    def record(self) -> dict[str, str | int | None]:
        """What files of encoders and embeddings say of it; `recorded_split` reads it."""
        return {"split": self.split, "fold": self.fold}


def split_title(split: str, fold: int | None) -> str:
    """A split in words, with its fold if it has folds."""
    return split if fold is None else f"{split}, fold {fold}"


def recorded_split(record: Mapping[str, Any]) -> tuple[str, int | None]:
    """The split and fold in the record of an encoder or of embeddings; files older than splits say nothing of them."""
    split, fold = record.get("split", "in_distribution"), record.get("fold")
    if (
        split not in SPLITS
        or not isinstance(fold, int | None)
        or (fold is None) != (SPLITS[split].held_out is not None)
    ):
        raise ValueError(f"the record says split {split!r} and fold {fold!r}, which are not understood")
    return split, fold


def folds(table: pa.Table, split: str) -> list[int | None]:
    """The folds of a split of the zoo with this table, ascending; [None] for a split without folds."""
    refuse_unknown_name("split", split, SPLITS)
    rule = SPLITS[split]
    return [None] if rule.held_out is not None else sorted(set(_column(table, rule.column)))


def divide(table: pa.Table, split: str, fold: int | None = None) -> Division:
    """Divide the rows of models.parquet for a split; `NothingHeldOutError` if the zoo holds out no or all models.

    Only `in_distribution` may be without training or test rows: such a zoo can still be embedded, or learned from.
    """
    known = folds(table, split)
    rule = SPLITS[split]
    if fold not in known:
        if known == [None]:
            raise ValueError(f"The split {split} has no folds, but fold {fold} was asked for; leave the fold out.")
        asked = "none was chosen" if fold is None else f"{fold} is not one of them"
        raise ValueError(f"The split {split} has the folds {known}, and {asked}; choose one of them.")
    told = _column(table, "split")
    held_out = _column(table, rule.column) == (fold if rule.held_out is None else rule.held_out)
    train, val = (told == "train") & ~held_out, (told == "val") & ~held_out
    models = _models(table, train=train, val=val, test=held_out)
    for part, mask in (("held out", held_out), ("left to train on", train)):
        if not mask.any() and rule.column != "split":
            raise NothingHeldOutError(
                f"No model is {part} for the split {split_title(split, fold)} (column '{rule.column}'); "
                f"build the zoo with {rule.way_out}."
            )
    return Division(split=cast(SplitName, split), fold=fold, train=train, val=val, test=held_out, models=models)


def divisions(table: pa.Table, split: str) -> list[Division]:
    """Every division of a split: one, or one for each fold."""
    return [divide(table, split, fold) for fold in folds(table, split)]


def _column(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        raise ValueError(f"The zoo's table lacks the column '{name}', which every zoo has; is it damaged?")
    column = table.column(name)
    if column.null_count:
        raise ValueError(f"The column '{name}' of the zoo's table is null in {column.null_count} rows; is it damaged?")
    return np.array(column.to_pylist(), dtype=object)


def _models(table: pa.Table, **masks: np.ndarray) -> str:
    """Name which model is in which mask (rows); a model whose snapshots are in different masks is refused."""
    ids = _column(table, "model_id")
    parts = np.full(len(ids), "", dtype=object)
    for part, mask in masks.items():
        parts[mask] = part
    found: dict[str, str] = {}
    for model, part in zip(ids, parts, strict=True):
        if found.setdefault(model, part) != part:
            raise ValueError(
                f"Snapshots of the model '{model}' are on different sides of a split, so that one would give away "
                "the other; a model must be in one of them with all its snapshots. Is the table damaged?"
            )
    return digest(found)
