"""What can be read off weights and their records without learning: the baselines every embedding stands beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from weightspace.rows import rows, unfolded
from weightspace.spec import Params, WeightSpec
from weightspace.store import Stack, Zoo, read_config

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
CHUNK = 256
"""Models described at a time."""
OF_COVARIANCES = ("state_effective_rank", "state_participation_ratio", "state_stable_rank", "activity_dimension")
"""Labels that are functions of the eigenvalues of the covariance of driven states."""
OF_FADING = (
    *("memory_decay_rate", "memory_half_life", "memory_decay_fit"),
    *("largest_lyapunov", "lyapunov_1", "gradient_log_slope"),
)
"""Labels of how fast products of Jacobians, which carry a small kick on, grow or fade."""


@dataclass(frozen=True)
class Features:
    """Values (rows, columns) float64 in the row order of models.parquet, and the name of each column."""

    values: np.ndarray
    names: list[str]


@dataclass(frozen=True)
class Columns:
    """What was read of the weights, before it is decided which columns to make of it.

    values (rows, columns) float64, 0 where present (rows, columns) says that a model has no such column.
    """

    values: np.ndarray
    present: np.ndarray
    names: list[str]

    @classmethod
    def joined(cls, num_rows: int, parts: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> Columns:
        """All columns from parts of them: row numbers (models), and the values (models) of each column they have."""
        # A reading may have nothing to say of a family: one without recurrent matrices has no spectra.
        parts = [(numbers, columns) for numbers, columns in parts if columns]
        names = list(dict.fromkeys(name for _, columns in parts for name in columns))
        index = {name: i for i, name in enumerate(names)}
        values, present = np.zeros((num_rows, len(names))), np.zeros((num_rows, len(names)), dtype=bool)
        for numbers, columns in parts:
            where = np.ix_(numbers, np.array([index[name] for name in columns]))
            values[where], present[where] = np.stack(list(columns.values()), axis=1), True
        return cls(values, present, names)

    def beside(self, other: Columns) -> Columns:
        """These columns and those of another reading of the same rows."""
        sides = ((self.values, other.values), (self.present, other.present))
        values, present = (np.concatenate(side, axis=1) for side in sides)
        return Columns(values, present, [*self.names, *other.names])

    def features(self, train: np.ndarray | None = None) -> Features:
        """Features of all rows, in columns chosen by what the rows of the mask `train` (rows) have (all if None).

        `present.NAME` says whether a model has the tensor, or the eigenvalue of that size, so that 0 is not mistaken.
        """
        known = self.present if train is None else self.present[train]
        kept = np.flatnonzero(known.any(axis=0))
        names = [self.names[column] for column in kept]
        return _with_presence(self.values[:, kept], self.present[:, kept], known[:, kept], names)


def statistics(zoo: Zoo) -> Features:
    """Mean, variance and quantiles of every effective tensor and gate row of all models (see `statistics_of`)."""
    return columns_of(zoo, statistics_of).features()


def spectra(zoo: Zoo) -> Features:
    """Singular values and eigenvalues of every recurrent tensor and gate row of all models (see `spectra_of`)."""
    return columns_of(zoo, spectra_of).features()


def statistics_of(spec: WeightSpec, params: Params) -> dict[str, Tensor]:
    """Columns (models,) float64 of stacked effective params: mean, variance, quantiles 0, .25, .5, .75, 1.

    Tensors and their gate rows are described one by one; masks are left out. These are the simple features of
    Unterthiner et al. (Predicting neural network accuracy from weights, arXiv 2002.11448).
    """
    columns = {}
    for row in rows(spec, params):
        flat, label = row.value.double().flatten(1), row.label
        columns[f"{label}.mean"] = flat.mean(1)
        columns[f"{label}.variance"] = flat.var(1, correction=0)
        points = torch.tensor(QUANTILES, dtype=flat.dtype, device=flat.device)
        for share, values_at in zip(QUANTILES, torch.quantile(flat, points, dim=1), strict=True):
            columns[f"{label}.q{100 * share:g}"] = values_at
    return columns


def spectra_of(spec: WeightSpec, params: Params) -> dict[str, Tensor]:
    """Columns (models,) float64 of stacked effective params: the spectra of each recurrent tensor and gate row.

    Singular values in falling order; eigenvalues by falling magnitude, as real part and absolute imaginary part. Of a
    tensor with three node axes, singular values of the matrix (to, pair of units) alone.
    """
    columns = {}
    for row in rows(spec, params, (*spec.recurrent(), *spec.recurrent_products())):
        matrix, label = unfolded(row.value.double()), row.label
        for i, values in enumerate(torch.linalg.svdvals(matrix).unbind(1)):
            columns[f"{label}.singular.{i}"] = values
        if len(row.nodes) > 2:
            continue
        for i, values in enumerate(_eigenvalues(matrix).unbind(1)):
            columns[f"{label}.eigenvalue.{i}.real"] = values.real
            columns[f"{label}.eigenvalue.{i}.imaginary"] = values.imag.abs()
    return columns


def eigenvalues_of(spec: WeightSpec, params: Params) -> dict[str, Tensor]:
    """Eigenvalues (models, unit) complex128 of each recurrent matrix and gate row of stacked effective params.

    They have the labels of rows, and stand by falling magnitude. Families that recur unit by unit have none.
    """
    return {row.label: _eigenvalues(row.value.double()) for row in rows(spec, params, spec.recurrent())}


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues (models, unit) of matrices (models, unit, unit) by falling magnitude."""
    eigenvalues: Tensor = torch.linalg.eigvals(matrix)
    return eigenvalues.gather(1, eigenvalues.abs().argsort(dim=1, descending=True, stable=True))


def columns_of(zoo: Zoo, describe: Callable[[WeightSpec, Params], dict[str, Tensor]]) -> Columns:
    """Describe all models with `statistics_of`, `spectra_of` or the like, stack by stack."""
    parts = ((stack.rows.numpy(), _described(stack, describe)) for stack in zoo.stacks(max_models=CHUNK))
    return Columns.joined(zoo.num_rows, parts)


def _described(stack: Stack, describe: Callable[[WeightSpec, Params], dict[str, Tensor]]) -> dict[str, np.ndarray]:
    spec, params = stack.effective
    for name, tensor in params.items():
        bad = ~torch.isfinite(tensor).flatten(1).all(1)
        if bad.any():
            row = int(stack.rows[bad.nonzero()[0, 0]])
            raise ValueError(
                f"'{name}' of row {row} in models.parquet holds NaN or infinity; a zoo keeps the last finite weights "
                "of a diverged model. Run `zoo-builder verify` on it."
            )
    return {name: column.cpu().numpy() for name, column in describe(spec, params).items()}


def _with_presence(values: np.ndarray, present: np.ndarray, known: np.ndarray, names: Sequence[str]) -> Features:
    """Append one `present.NAME` column for each distinct pattern of missing values in known (train rows, columns)."""
    patterns: dict[bytes, int] = {}
    for column in range(len(names)):
        if not known[:, column].all():
            patterns.setdefault(known[:, column].tobytes(), column)
    chosen = list(patterns.values())
    values = np.concatenate([values, present[:, chosen].astype(float)], axis=1)
    return Features(values, [*names, *(f"present.{names[column]}" for column in chosen)])


def metadata(table: pa.Table, train: np.ndarray | None = None) -> Features:
    """What is known of a model without its weights: family, sizes, task, step and every stored hyper-parameter.

    Text becomes one column per value; numbers are kept, as logarithms where they are positive and span a decade; the
    step is both a number and a category. What a model does not have is 0, with a `present.NAME` column. Which columns
    there are, and which are logarithms, is for the rows of the mask `train` (rows) to say (all rows if None).
    """
    train = np.ones(table.num_rows, dtype=bool) if train is None else train
    records = [_record(row) for row in table.select(_METADATA).to_pylist()]
    fitted = np.flatnonzero(train).tolist()
    names = list(dict.fromkeys(name for row in fitted for name in records[row]))
    values, present, labels = [], [], []
    for name in names:
        column = [record.get(name) for record in records]
        for label, numbers, has in _numbers(name, column, [column[row] for row in fitted if column[row] is not None]):
            labels.append(label)
            values.append(numbers)
            present.append(has)
    has = np.array(present).T
    return _with_presence(np.stack(values, axis=1), has, has[train], labels)


_METADATA = ["family", "family_config", "task", "task_config", "learning_config", "num_parameters", "step"]


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """All leaves of one row's records by name."""
    parameters = row["num_parameters"]
    record = {"family": row["family"], "task": row["task"]}
    record |= {"log.num_parameters": math.log(parameters) if _is_number(parameters) and parameters > 0 else None}
    record |= {"step": row["step"], "step.category": str(row["step"])}
    for column in ("family_config", "task_config", "learning_config"):
        record |= dict(_leaves(column.removesuffix("_config"), read_config(column, row[column])))
    return {name: value for name, value in record.items() if value is not None}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(f"{name}.{i}", item)
    else:
        yield name, value


def _numbers(name: str, column: Sequence[Any], known: Sequence[Any]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Columns (rows,) of one record and where it is there (rows,), as its known values among the training rows suggest.

    A number is kept as it is or becomes its logarithm; of anything else there is one column per value.
    """
    if all(_is_number(value) for value in known):
        has = np.array([_is_number(value) for value in column])
        numbers = np.array([float(value) if known else 0.0 for value, known in zip(column, has, strict=True)])
        if min(known) > 0 and max(known) >= 10 * min(known):
            # A number below all that training knows, and without a logarithm, is taken for the least of them.
            name, numbers = f"log.{name}", np.log(np.where(numbers > 0, numbers, min(known))) * has
        yield name, numbers, has
        return
    texts = np.array([None if value is None else str(value) for value in column], dtype=object)
    for text in sorted({str(value) for value in known}):
        yield f"{name}={text}", (texts == text).astype(float), texts != np.array(None)


def _is_number(value: Any) -> bool:
    # Integers beyond any float are taken as text.
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**1000)
