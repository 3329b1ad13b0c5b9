"""What is probed: targets and their transforms, cells, splits, and the rows that take part."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

logger = logging.getLogger(__name__)

Kind = Literal["regression", "classification"]

COLUMNS = ("model_id", "step", "family", "family_config", "task", "hidden_size", "status", "split")
# Sizes that follow from the task, whose parameters may vary inside a cell.
TASK_SIZES = ("input_size", "output_size")


class NotEnoughError(ValueError):
    """A target has too few models or classes to be probed on a split."""


def _log(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Take the natural logarithm of values (rows), which must be positive."""
    if np.any(values <= 0):
        raise ValueError(
            f"'log' needs positive labels, but {np.sum(values <= 0)} of {len(values)} are not; use 'clip'."
        )
    return np.log(values)


# Pure functions of labels (rows) and the target's bounds.
TRANSFORMS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "identity": lambda values, low, high: values,
    "clip": np.clip,
    "log": _log,
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A label chosen for probing.

    name: column of models.parquet. transform: a key of `TRANSFORMS`; low and high bound 'clip', in the label's unit.
    leave_out_step_0: whether snapshots of step 0 (untrained models) are left out.
    """

    name: str
    kind: Kind = "regression"
    transform: str = "identity"
    low: float = -np.inf
    high: float = np.inf
    leave_out_step_0: bool = False
    description: str = ""

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ValueError(
                f"Target '{self.name}': no transform '{self.transform}'; there are {', '.join(TRANSFORMS)}."
            )
        if self.transform == "clip" and not self.low < self.high:
            raise ValueError(f"Target '{self.name}' clips to [{self.low}, {self.high}]; low must be below high.")

    @property
    def transform_text(self) -> str:
        """The transform in words, for reports."""
        return f"clipped to [{self.low:g}, {self.high:g}]" if self.transform == "clip" else self.transform

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Transformed labels (rows) of raw labels (rows)."""
        try:
            return TRANSFORMS[self.transform](values, self.low, self.high)
        except ValueError as error:
            raise ValueError(f"Target '{self.name}': {error}") from None


_FADING = "rate at which a perturbation of the state fades, nats per step"
HEADLINES = (
    Target(
        name="state_effective_rank", description="entropy rank of the driven state's covariance over the state size"
    ),
    Target(name="memory_decay_rate", transform="clip", low=-0.5, high=1.5, description=_FADING),
    Target(name="score", leave_out_step_0=True, description="task performance, higher is better"),
)
CLASSES = (
    Target(name="family", kind="classification", description="class of the recurrent architecture"),
    Target(name="task", kind="classification", description="class of the task it was trained on"),
)


def named_target(table: pa.Table, name: str) -> Target:
    """Find the target for a column: a headline or class as declared, else a number as it is, else a class."""
    if name not in table.column_names:
        raise ValueError(f"The zoo has no label column '{name}'; its columns are {', '.join(table.column_names)}.")
    for target in HEADLINES + CLASSES:
        if target.name == name:
            return target
    stored = table.schema.field(name).type
    number = pa.types.is_floating(stored) or pa.types.is_integer(stored)
    return Target(name=name, kind="regression" if number else "classification", description=f"label '{name}'")


def default_targets(table: pa.Table, labels: Sequence[str] = ()) -> list[Target]:
    """Targets for a zoo: the headlines it has, else each of its non-null `labels`; then the classes that vary."""
    filled = {name for name in table.column_names if table.column(name).null_count < table.num_rows}
    chosen = [target for target in HEADLINES if target.name in filled]
    if not chosen:
        chosen = [named_target(table, name) for name in labels if name in filled]
    return chosen + [target for target in CLASSES if len(table.column(target.name).unique()) > 1]


@dataclass(frozen=True)
class Split:
    """A named pair of row masks (rows): what a probe is fit on and what it is judged on."""

    name: str
    train: np.ndarray
    test: np.ndarray


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


def _codes(keys: Sequence[Any]) -> np.ndarray:
    """Integer codes (rows) of hashable keys, in order of first appearance."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _without_task_sizes(config: str) -> str:
    fields = json.loads(config or "{}")
    return json.dumps({key: value for key, value in fields.items() if key not in TASK_SIZES}, sort_keys=True)


def read_rows(table: pa.Table) -> Rows:
    """Read what probing needs; a cell is one family with its config, hidden_size, class of task and step."""
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"The zoo's table lacks the columns {', '.join(missing)}, which every zoo has; is it damaged?")
    if not table.num_rows:
        raise ValueError("The zoo's table has no rows, so there is nothing to probe.")
    column = {name: table.column(name).to_pylist() for name in COLUMNS}
    if len(set(zip(column["model_id"], column["step"], strict=True))) < table.num_rows:
        raise ValueError("The zoo's table repeats a (model_id, step); expected one row per model and snapshot.")
    configs = {text: _without_task_sizes(text) for text in set(column["family_config"])}
    config = [configs[text] for text in column["family_config"]]
    strata = list(zip(column["family"], config, column["hidden_size"], column["task"], strict=True))
    cells = list(zip(strata, column["step"], strict=True))
    return Rows(table, _codes(column["model_id"]), _codes(cells), _codes(strata))


def splits(rows: Rows) -> Iterator[Split]:
    """Yield the splits a probe may be judged on; test models are those nothing was fit or chosen on."""
    split = rows.column("split")
    yield Split("in_distribution", split == "train", split == "test")


@dataclass(frozen=True)
class Problem:
    """One target on one split.

    train, test: row numbers (num_train), (num_test). y (rows): transformed labels, or class names.
    residual (rows): a regression's labels minus the training mean of their cell, 0 where training has no such cell.
    seen (rows): whether it has. excluded: what was left out, counts by reason.
    """

    rows: Rows
    target: Target
    split: str
    train: np.ndarray
    test: np.ndarray
    y: np.ndarray
    residual: np.ndarray
    seen: np.ndarray
    excluded: dict[str, float]

    def truth(self, metric: str) -> np.ndarray:
        """What a metric compares predictions with (num_test)."""
        return (self.residual if metric == "r2_within_cell" else self.y)[self.test]


def pose(rows: Rows, target: Target, split: Split) -> Problem:
    """Choose the rows of a target on a split and take cell means off its labels, or raise `NotEnoughError`."""
    labels, missing, infinite = _labels(rows.table, target)
    step_0 = (rows.column("step") == 0) & target.leave_out_step_0
    kept = split.train | split.test
    excluded: dict[str, float] = {}
    reasons = {"diverged": diverged(rows), "missing": missing, "not_finite": infinite, "step_0": step_0}
    for reason, mask in reasons.items():
        excluded[reason] = int(np.sum(kept & mask))
        kept = kept & ~mask
    train, test = np.flatnonzero(kept & split.train), np.flatnonzero(kept & split.test)
    _refuse_too_few(rows, target, labels, train, test)
    numbers = np.zeros(len(labels))
    if target.kind == "regression":
        numbers[kept] = target.apply(labels[kept])
    if target.transform == "clip":
        excluded["clipped_share"] = float(np.mean(numbers[kept] != labels[kept]))
    residual, seen = _residuals(rows.cell, numbers, train)
    excluded["test_rows_in_unseen_cells"] = int(np.sum(~seen[test]))
    y = numbers if target.kind == "regression" else labels
    return Problem(rows, target, split.name, train, test, y, residual, seen, excluded)


def pose_all(
    rows: Rows, targets: Sequence[Target], excluded: dict[str, dict[str, dict[str, Any]]]
) -> Iterator[Problem]:
    """Pose every target on every split, noting in `excluded`, by split and target, what was left out and why."""
    for split in splits(rows):
        notes = excluded.setdefault(split.name, {})
        for target in targets:
            try:
                problem = pose(rows, target, split)
            except NotEnoughError as reason:
                logger.warning("Skipping %s on %s: %s", target.name, split.name, reason)
                notes[target.name] = {"skipped": str(reason)}
            else:
                notes[target.name] = problem.excluded
                yield problem


def diverged(rows: Rows) -> np.ndarray:
    """Mask (rows) of the snapshots of models that had diverged, which no probe uses."""
    return rows.column("status") == "diverged"


def _labels(table: pa.Table, target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw labels (rows), which of them are missing (rows) and which are infinite (rows)."""
    column = table.column(target.name)
    if target.kind == "classification":
        missing = np.array(column.is_null())
        return np.array([str(value) for value in column.to_pylist()], dtype=object), missing, np.zeros_like(missing)
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values, np.isnan(values), np.isinf(values)


def _refuse_too_few(rows: Rows, target: Target, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> None:
    """Raise `NotEnoughError` unless two models or more are left on each side, and two classes to train on."""
    for side, chosen in (("train", train), ("test", test)):
        models = len(np.unique(rows.model[chosen]))
        if models < 2:
            raise NotEnoughError(f"{models} {side} model(s) with a usable label; 2 or more are needed.")
    if target.kind == "classification" and len(set(labels[train])) < 2:
        raise NotEnoughError("only one class among the training rows; 2 or more are needed.")


def _residuals(cell: np.ndarray, numbers: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (rows) minus the training mean of their cell, 0 where it is unseen, and whether it is seen (rows)."""
    counts = np.bincount(cell[train], minlength=cell.max() + 1)
    sums = np.bincount(cell[train], weights=numbers[train], minlength=cell.max() + 1)
    seen = counts[cell] > 0
    residual = np.where(seen, numbers - (sums / np.maximum(counts, 1))[cell], 0.0)
    # What rounding leaves of a label that is constant in its cell is not signal.
    residual[np.abs(residual) <= 1e-12 * np.abs(numbers)] = 0.0
    return residual, seen


def shuffled_order(problem: Problem, within_cell: bool, generator: np.random.Generator) -> np.ndarray:
    """Positions (num_train) among the training rows whose labels these get when labels move between models.

    The rows of a model get those of one other model, as a permutation. Within cells the donor shares the stratum and
    lends each step its own, so every cell keeps its labels; otherwise steps are mixed too, so that nothing is left to
    learn. Rows without a counterpart share out what is left, within their cell or anywhere.
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
