"""Predictions of held-out rows from every feature set: each target and fold by a fit of its own, beside a control."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from probes.boosting import Boosting, Fit, fit_all
from probes.bootstrap import keyed
from probes.feature_sets import Beside, FeatureSet
from probes.probe import Design
from probes.problem import Problem, Question, diverged, shuffled_order
from weightspace.store import SPLITS

NUM_PERMUTATIONS = 40
# Metrics of numbers, by whether training has seen the held-out models' cells, and what they judge: predictions of
# labels (0) or of residuals (1). The first is the headline; differences are taken in the first two.
METRICS = {
    True: (("r2_within_cell", 1), ("r2", 0), ("kendall_tau", 0)),
    False: (("kendall_tau", 1), ("r2", 0)),
}

Fits = dict[tuple[str, str], Fit]
"""Fits by (probe, metric), with predictions (..., num_test)."""


def metrics_of(split: str) -> tuple[tuple[str, int], ...]:
    """The metrics of numbers on a split, headline first."""
    return METRICS[SPLITS[split].seen_cells]


@dataclass(frozen=True)
class Prediction:
    """A probe's predictions (num_test) of a question's test rows, for one metric.

    error: mean squared error on validation rows, by which the strongest baseline is chosen; NaN for classes.
    """

    question: Question
    features: FeatureSet
    probe: str
    metric: str
    predicted: np.ndarray
    error: float = np.nan


@dataclass(frozen=True)
class Fitted:
    """Predictions from one feature set, and those on permuted labels (permutations, num_test), for the control."""

    predictions: list[Prediction] = field(default_factory=list)
    permuted: list[Prediction] = field(default_factory=list)


def fit(features: FeatureSet, questions: Sequence[Question], seed: int, with_control: bool) -> Fitted:
    """Predict the test rows of every question from features, fold by fold."""
    problems: dict[int | None, list[Problem]] = defaultdict(list)
    judged: dict[int, tuple[Fits, Fits]] = {}
    # Nothing is compared with what an embedding and a baseline together know of classes.
    asked = [q for q in questions if q.target.kind == "regression" or not isinstance(features, Beside)]
    for question in asked:
        for problem in question.problems:
            problems[problem.division.fold].append(problem)
    for same_fold in problems.values():
        judged |= zip(map(id, same_fold), _fold(features, same_fold, seed, with_control), strict=True)
    result = Fitted()
    for question in asked:
        # A target may lack a fold that another has, so that folds were judged in another order than the question's.
        folds = [judged[id(problem)] for problem in question.problems]
        for side, predictions in enumerate((result.predictions, result.permuted)):
            for (probe, metric), both in _joined(question, [fold[side] for fold in folds]).items():
                prediction = Prediction(question, features, probe, metric, both.predicted, float(both.error))
                predictions.append(prediction)
    return result


def _fold(
    features: FeatureSet, problems: Sequence[Problem], seed: int, with_control: bool
) -> list[tuple[Fits, Fits]]:
    """Fits of each of the problems of one division, and those on permuted labels where they are asked for."""
    values = _values(features, problems[0])
    designs: dict[bytes, Design] = {}
    judged: list[tuple[Fits, Fits]] = []
    tasks: list[tuple[Fits, str, Boosting]] = []
    for problem in problems:
        key = problem.train.tobytes() + problem.val.tobytes()
        if key not in designs:
            models = problem.rows.model[problem.train]
            designs[key] = Design(values[problem.train], models, values[problem.val])
        design, held_out = designs[key], values[problem.test]
        fits = _predicted(problem, design, held_out)
        if features.boosted and problem.target.kind == "regression":
            tasks += [(fits, metric, task) for metric, task in _boosting(problem, design, held_out)]
        judged.append((fits, _permuted(problem, design, held_out, seed) if with_control else {}))
    distinct = list({id(task): task for _, _, task in tasks}.values())
    done = dict(zip(map(id, distinct), fit_all(distinct), strict=True))
    for fits, metric, task in tasks:
        fits["gradient_boosting", metric] = done[id(task)]
    return judged


def _joined(question: Question, fits: Sequence[Fits]) -> Fits:
    """The predictions of all folds, one after another; errors are means over folds by their training rows."""
    counts = [len(problem.train) for problem in question.problems]
    return {
        key: Fit(
            np.concatenate([fold[key].predicted for fold in fits], axis=-1),
            np.average([fold[key].error for fold in fits], weights=counts),
        )
        for key in (fits[0] if fits else ())
    }


def _values(features: FeatureSet, problem: Problem) -> np.ndarray:
    """Values (rows, columns) on a problem's division; refused if they do not fit, or are not finite."""
    read, rows = features.on(problem.division), problem.rows
    if read.values.shape != (expected := (len(rows.model), len(read.names))):
        raise ValueError(f"Features '{features.name}' have shape {read.values.shape}, expected {expected}.")
    broken = ~np.isfinite(read.values) & ~diverged(rows)[:, None]
    if broken.any():
        row, column = np.argwhere(broken)[0]
        raise ValueError(
            f"Features '{features.name}' hold {int(broken.sum())} value(s) that are not finite, the first in "
            f"column '{read.names[column]}' at row {row}; recompute them, or mark the model as diverged."
        )
    return read.values


def _predicted(problem: Problem, design: Design, values: np.ndarray) -> Fits:
    """Fits for values (num_test, columns) of the linear probe that suits the target."""
    y = problem.y[problem.train]
    if problem.target.kind == "classification":
        return {("logistic", "accuracy"): Fit(design.logistic(y, values), np.array(np.nan))}
    labels, labels_val = _labels(problem)
    line = design.ridge(labels, values, labels_val)
    metrics = metrics_of(problem.division.split)
    return {("ridge", metric): Fit(line.predicted[:, i], line.error[i]) for metric, i in metrics}


def _boosting(problem: Problem, design: Design, values: np.ndarray) -> list[tuple[str, Boosting]]:
    """Each metric with the fit of boosted trees for values (num_test, columns) that it judges; two may share one."""
    labels, labels_val = _labels(problem)
    tasks = [design.boosting(labels[:, i], values, labels_val[:, i]) for i in range(2)]
    return [(metric, tasks[i]) for metric, i in metrics_of(problem.division.split)]


def _labels(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Labels and their residuals within cells: of training rows (num_train, 2) and of validation rows (num_val, 2)."""
    both = np.stack([problem.y, problem.residual], axis=1).astype(float)
    return both[problem.train], both[problem.val]


def _permuted(problem: Problem, design: Design, values: np.ndarray, seed: int) -> Fits:
    """Ridge fits (permutations, num_test) on labels permuted between models; of classes, the one of largest output."""
    fold = [] if problem.division.fold is None else [str(problem.division.fold)]
    generator = keyed(seed, "shuffled", *fold, problem.division.split, problem.target.name)
    guesses: dict[str, list[np.ndarray]] = defaultdict(list)
    y, residual = problem.y[problem.train], problem.residual[problem.train]
    classes, codes = np.unique(y, return_inverse=True)
    for _ in range(NUM_PERMUTATIONS):
        order = shuffled_order(problem, False, generator)
        if problem.target.kind == "classification":
            outputs = design.ridge(np.eye(len(classes))[codes[order]], values).predicted
            guesses["accuracy"].append(classes[np.argmax(outputs, axis=1)])
        else:
            labels = np.stack([y[order], residual[shuffled_order(problem, True, generator)]], axis=1)
            predicted = design.ridge(labels, values).predicted
            for metric, column in metrics_of(problem.division.split):
                guesses[metric].append(predicted[:, column])
    return {("ridge", metric): Fit(np.stack(rows), np.array(np.nan)) for metric, rows in guesses.items()}
