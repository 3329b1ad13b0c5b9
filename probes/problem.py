"""Targets on divisions of a zoo: cells, the rows that take part, and labels moved between models for the control.

Rows      the zoo's table, one row per (model, snapshot), with the model and the cell of each
Division  (weightspace.store) which rows one split, or one of its folds, trains on, chooses by and holds out
Problem   one target on one Division: the rows that have the label, transformed labels, residuals within cells
Question  one target on one split: its Problems, one per fold, judged together
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from probes.targets import Target
from weightspace.store import SPLITS, Division, cell_codes, cell_means, codes, stratum_codes

COLUMNS = ("model_id", "step", "family", "family_config", "task", "hidden_size", "status")
SPLIT_COLUMNS = tuple(rule.column for rule in SPLITS.values())
# Boosted trees take gradients in float32, where those of much larger numbers are infinite and nothing is learned.
LARGEST = 1e30


class NotEnoughError(ValueError):
    """A target has too few models or classes to be probed on a split."""


@dataclass(frozen=True)
class Rows:
    """A zoo's table with, for each row, the codes of its model, of its cell and of its stratum: a cell but its step."""

    table: pa.Table
    model: np.ndarray
    cell: np.ndarray
    stratum: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """A column of the table (rows)."""
        return np.array(self.table.column(name).to_pylist(), dtype=object)


def read_rows(table: pa.Table) -> Rows:
    """Read what probing needs; a cell is one family with its config, hidden_size, class of task and step."""
    missing = [name for name in (*COLUMNS, *SPLIT_COLUMNS) if name not in table.column_names]
    if missing:
        raise ValueError(f"The zoo's table lacks the columns {', '.join(missing)}, which every zoo has; is it damaged?")
    if not table.num_rows:
        raise ValueError("The zoo's table has no rows, so there is nothing to probe.")
    model, step = (table.column(name).to_pylist() for name in ("model_id", "step"))
    if len(set(zip(model, step, strict=True))) < table.num_rows:
        raise ValueError("The zoo's table repeats a (model_id, step); expected one row per model and snapshot.")
    return Rows(table, codes(model), cell_codes(table), stratum_codes(table))


@dataclass(frozen=True)
class Problem:
    """One target on one division.

    train, test: row numbers (num_train), (num_test). val: row numbers of models that fits have not seen and choices are
    made by, of cells that training has seen; none where there are not two such models. y (rows): transformed labels, or
    class names.
    residual (rows): a regression's labels minus the training mean of their cell, 0 where training has no such cell.
    seen (rows): whether it has. excluded: what was left out, counts by reason.
    """

    rows: Rows
    target: Target
    division: Division
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    y: np.ndarray
    residual: np.ndarray
    seen: np.ndarray
    excluded: dict[str, float]


@dataclass(frozen=True)
class Question:
    """A target on a split: its problems, one for each fold, judged together over the test rows of all of them.

    Arrays (num_test) follow the problems, one after another. Every model is held out in one of them only.
    """

    problems: tuple[Problem, ...]

    @property
    def target(self) -> Target:
        """The target of all problems."""
        return self.problems[0].target

    @property
    def split(self) -> str:
        """The split of all problems."""
        return self.problems[0].division.split

    @property
    def within_cells(self) -> bool:
        """Whether order is compared within cells, as training has seen none of them and cannot tell their means."""
        return not SPLITS[self.split].seen_cells

    @cached_property
    def test(self) -> np.ndarray:
        """Row numbers of the test rows (num_test)."""
        return np.concatenate([problem.test for problem in self.problems])

    @cached_property
    def fold(self) -> np.ndarray:
        """The place of each test row's problem (num_test)."""
        return np.repeat(np.arange(len(self.problems)), [len(problem.test) for problem in self.problems])

    @cached_property
    def seen(self) -> np.ndarray:
        """Whether training has seen the cell of each test row (num_test)."""
        return np.concatenate([problem.seen[problem.test] for problem in self.problems])

    @property
    def model(self) -> np.ndarray:
        """The code of each test row's model (num_test)."""
        codes: np.ndarray = self.problems[0].rows.model[self.test]
        return codes

    @property
    def cell(self) -> np.ndarray:
        """The code of each test row's cell (num_test)."""
        codes: np.ndarray = self.problems[0].rows.cell[self.test]
        return codes

    def truth(self, metric: str) -> np.ndarray:
        """The numbers or classes that a metric compares predictions with (num_test)."""
        within = metric == "r2_within_cell"
        return np.concatenate([(p.residual if within else p.y)[p.test] for p in self.problems])


def pose(rows: Rows, target: Target, division: Division) -> Problem:
    """Choose the rows of a target on a division and take cell means off its labels, or raise `NotEnoughError`."""
    labels, missing, infinite = _labels(rows.table, target)
    kept = division.train | division.val | division.test
    judged = division.train | division.test
    excluded: dict[str, float] = {}
    step_0 = target.left_out(rows.table)
    reasons = {"diverged": diverged(rows), "missing": missing, "not_finite": infinite, "step_0": step_0}
    for reason, mask in reasons.items():
        excluded[reason] = int(np.sum(kept & judged & mask))
        kept = kept & ~mask
    train, test = np.flatnonzero(kept & division.train), np.flatnonzero(kept & division.test)
    _refuse_too_few(rows, target, labels, train, test)
    numbers = np.zeros(len(labels))
    if target.kind == "regression":
        numbers[kept] = target.apply(labels[kept])
    if target.transform == "clip":
        excluded["clipped_share"] = float(np.mean((numbers != labels)[kept & judged]))
    residual, seen = _residuals(rows.cell, numbers, train)
    val = np.flatnonzero(kept & division.val & seen)
    val = val if len(np.unique(rows.model[val])) > 1 else val[:0]
    excluded["test_rows_in_unseen_cells"] = int(np.sum(~seen[test]))
    y = numbers if target.kind == "regression" else labels
    return Problem(rows, target, division, train, val, test, y, residual, seen, excluded)


def diverged(rows: Rows) -> np.ndarray:
    """Mask (rows) of the snapshots of models that had diverged, which no probe uses."""
    mask: np.ndarray = rows.column("status") == "diverged"
    return mask


def _labels(table: pa.Table, target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw labels (rows), which of them are missing (rows) and which are infinite or too large (rows)."""
    if target.kind == "classification":
        column = table.column(target.name)
        missing = np.array(column.is_null())
        return np.array([str(value) for value in column.to_pylist()], dtype=object), missing, np.zeros_like(missing)
    values = target.numbers(table)
    bounded = np.clip(values, target.low, target.high) if target.transform == "clip" else values
    return values, np.isnan(values), np.isinf(values) | (np.abs(bounded) > LARGEST)


def _refuse_too_few(rows: Rows, target: Target, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> None:
    """Raise `NotEnoughError` unless two models or more are left on each side, and two classes to train on."""
    for side, chosen in (("train", train), ("test", test)):
        models = len(np.unique(rows.model[chosen]))
        if models < 2:
            raise NotEnoughError(f"{models} {side} model(s) with a usable label; 2 or more are needed.")
    if target.kind == "classification" and len(set(labels[train])) < 2:
        raise NotEnoughError("only one class among the training rows; 2 or more are needed.")
    if target.kind == "classification" and not set(labels[train]) & set(labels[test]):
        raise NotEnoughError("no class of the held-out models is among the training rows, so none can be guessed.")


def refuse_unposed(rows: Rows, targets: Sequence[Target], divisions: Sequence[Division]) -> None:
    """Raise ValueError if no target can be probed on any of these divisions, before anything is trained for them."""
    reasons = none_posed(rows, targets, divisions)
    if reasons:
        raise ValueError(f"No target can be probed: {reasons}")


def none_posed(rows: Rows, targets: Sequence[Target], divisions: Sequence[Division]) -> str:
    """Why no target can be probed on any of these divisions; "" where one can."""
    excluded: dict[str, dict[str, dict[str, Any]]] = {}
    for division in divisions:
        for target in targets:
            try:
                pose(rows, target, division)
            except NotEnoughError as reason:
                excluded.setdefault(division.name, {})[target.name] = {"skipped": str(reason)}
            else:
                return ""
    return unposed(excluded)


def unposed(excluded: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The reasons, each with the split and the target it is for."""
    reasons = [
        f"{name} on {split}: {fold_notes['skipped']}"
        for split, targets in excluded.items()
        for name, notes in targets.items()
        for fold_notes in (notes.get("folds") or {"": notes}).values()
        if "skipped" in fold_notes
    ]
    return " ".join(reasons) or "the zoo has no label with a value, and neither family nor task varies."


def _residuals(cell: np.ndarray, numbers: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (rows) minus the training mean of their cell, 0 where it is unseen, and whether it is seen (rows)."""
    means = cell_means(numbers, cell, train)
    seen = ~np.isnan(means)
    residual = np.where(seen, numbers - means, 0.0)
    # What rounding leaves of a label that is constant in its cell is not signal.
    residual[np.abs(residual) <= 1e-12 * np.abs(numbers)] = 0.0
    return residual, seen


def shuffled_order(problem: Problem, within_cell: bool, generator: np.random.Generator) -> np.ndarray:
    """Positions (num_train) of the training rows that labels come from when they move between models.

    All rows of a model take labels from one other model, and no label is taken twice. Within cells, that model shares
    the stratum and rows of one step are matched, so that every cell keeps its labels; otherwise steps are mixed too, so
    that nothing is left to learn. Rows without a counterpart take the labels left over, in their cell or anywhere.
    """
    rows, train = problem.rows, problem.train
    model, stratum, cell = rows.model[train], rows.stratum[train] * within_cell, rows.cell[train] * within_cell
    slot = problem.rows.column("step")[train] if within_cell else _random_slots(model, generator)
    models, first = np.unique(model, return_index=True)
    drawn = np.lexsort((generator.random(len(models)), stratum[first]))
    donor = dict(zip(models[np.argsort(stratum[first], kind="stable")], models[drawn], strict=True))
    position = {key: i for i, key in enumerate(zip(model, slot, strict=True))}
    order = np.array([position.get((donor[m], s), -1) for m, s in zip(model, slot, strict=True)])
    takers = generator.permutation(np.flatnonzero(order < 0))
    lenders = generator.permutation(np.setdiff1d(np.arange(len(model)), order))
    order[takers[np.argsort(cell[takers], kind="stable")]] = lenders[np.argsort(cell[lenders], kind="stable")]
    return order


def _random_slots(model: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Number the rows of each model (rows) from 0 in random order."""
    order = np.lexsort((generator.random(len(model)), model))
    slot = np.empty(len(model), dtype=np.int64)
    slot[order] = np.arange(len(model)) - np.searchsorted(model[order], model[order])
    return slot
