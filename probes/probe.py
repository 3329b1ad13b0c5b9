"""Probes on frozen features: ridge, logistic and gradient boosting, with paired intervals and a shuffled control."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from probes.bootstrap import Resamples, keyed
from probes.targets import Problem, Rows, Target, diverged, pose_all, read_rows, shuffled_order

logger = logging.getLogger(__name__)

NUM_RESAMPLES = 1000
NUM_PERMUTATIONS = 40
# Fewer folds where every fold costs seconds.
NUM_FOLDS, NUM_SLOW_FOLDS = 5, 3
# From strong to weak, so that ties go to the stronger penalty.
RIDGE_ALPHAS = np.logspace(6, -3, 19)
LOGISTIC_ALPHAS = (1e6, 1e4, 1e3, 1e2, 1e1, 1e0)
BOOSTING_ITERATIONS = (5, 20, 40, 80)
# Metrics and what they judge: predictions of labels (0) or of residuals (1).
REGRESSION_METRICS = (("r2_within_cell", 1), ("r2", 0), ("kendall_tau", 0))
DIFFERENCE_METRICS = ("r2_within_cell", "r2")
BASELINES = tuple(itertools.product(("statistics", "spectra"), ("ridge", "gradient_boosting")))


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Features called `embedding:NAME`, `statistics`, `spectra` or `metadata`: values (rows, columns), names (columns).

    Baselines are probed with gradient boosting too. learned_with: `labels`, `no_labels`, or None if not learned.
    """

    name: str
    values: np.ndarray
    names: Sequence[str]
    kind: Literal["embedding", "baseline"]
    learned_with: str | None = None


@dataclass(frozen=True)
class Prediction:
    """What a probe said of a problem's test rows, predicted (num_test), for one metric."""

    problem: Problem
    features: FeatureSet
    probe: str
    metric: str
    predicted: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """Rows of probes.json, the predictions behind them, and what was left out, by split and target."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    excluded: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


class RidgePath:
    """Ridge regression with an intercept on x (rows, columns) for every penalty, from one eigen-decomposition.

    Minimises |y - x w - b|^2 + alpha |w|^2 (Hoerl and Kennard, 1970); the smaller of both Gram matrices is decomposed.
    """

    def __init__(self, x: np.ndarray) -> None:
        self.mean = x.mean(axis=0)
        centred = x - self.mean
        dual = x.shape[0] < x.shape[1]
        values, vectors = np.linalg.eigh(centred @ centred.T if dual else centred.T @ centred)
        self.values = np.maximum(values, 0.0)[:, None]
        self.basis = centred.T @ vectors if dual else vectors
        self.project = vectors.T if dual else (centred @ vectors).T

    def predict(self, x: np.ndarray, y: np.ndarray, alphas: Iterable[float | np.ndarray]) -> Iterator[np.ndarray]:
        """Predictions (test rows, outputs) on x (test rows, columns) from y (rows, outputs), for each penalty."""
        scores, weights = (x - self.mean) @ self.basis, self.project @ (y - y.mean(axis=0))
        return (scores @ (weights / (self.values + alpha)) + y.mean(axis=0) for alpha in alphas)


class Design:
    """Training features (rows, columns) with the model of each row (rows), from which every probe is fit.

    Columns are standardised by the training rows alone; one that is constant there becomes 0 and has no say. Penalties
    and numbers of trees are chosen by cross-validation in which all rows of a model stay together.
    """

    def __init__(self, values: np.ndarray, models: np.ndarray) -> None:
        self.scaler, self.models = StandardScaler().fit(values), models
        # So a column that is constant in training is 0 on every row, whatever it is elsewhere.
        self.scaler.scale_[np.ptp(values, axis=0) == 0] = np.inf
        self.x = self.scaler.transform(values)
        self.path = RidgePath(self.x)
        self.fold_paths = [(fit, held, RidgePath(self.x[fit])) for fit, held in self.folds(NUM_FOLDS)]

    def folds(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of row numbers (fit, held out) such that no model is on both sides."""
        folds = GroupKFold(n_splits=min(count, len(np.unique(self.models))))
        yield from folds.split(self.x, groups=self.models)

    def ridge(self, y: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Ridge predictions (test rows, outputs) for y (rows, outputs), each output with a penalty of its own."""
        errors = np.zeros((len(RIDGE_ALPHAS), y.shape[1]))
        for fit, held, path in self.fold_paths:
            guesses = path.predict(self.x[held], y[fit], RIDGE_ALPHAS)
            errors += [np.sum((y[held] - guess) ** 2, axis=0) for guess in guesses]
        best = RIDGE_ALPHAS[np.argmin(errors, axis=0)]
        return next(self.path.predict(self.scaler.transform(values), y, [best]))

    def boosting(self, y: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Gradient boosting predictions (test rows) for y (rows) (Friedman, 2001)."""
        errors = np.zeros(len(BOOSTING_ITERATIONS))
        for fit, held in self.folds(NUM_SLOW_FOLDS):
            stages = list(_trees(max(BOOSTING_ITERATIONS)).fit(self.x[fit], y[fit]).staged_predict(self.x[held]))
            errors += [np.sum((y[held] - stages[count - 1]) ** 2) for count in BOOSTING_ITERATIONS]
        best = _trees(BOOSTING_ITERATIONS[int(np.argmin(errors))])
        return best.fit(self.x, y).predict(self.scaler.transform(values))

    def logistic(self, y: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Classes (test rows) by logistic regression for classes y (rows)."""
        folds = [fold for fold in self.folds(NUM_SLOW_FOLDS) if len(set(y[fold[0]])) > 1]
        grid = {"C": [1 / alpha for alpha in LOGISTIC_ALPHAS]}
        search = GridSearchCV(LogisticRegression(max_iter=100, tol=1e-3), grid, cv=folds or [(np.arange(len(y)),) * 2])
        with warnings.catch_warnings():
            # A weak penalty stops before it converges, which is one more choice that cross-validation judges.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return search.fit(self.x, y).predict(self.scaler.transform(values))


def _trees(count: int) -> HistGradientBoostingRegressor:
    """Boosted trees that stop after `count`: stopping early on random rows would let a model judge itself."""
    settings = {"learning_rate": 0.15, "max_leaf_nodes": 15, "max_bins": 64, "early_stopping": False, "random_state": 0}
    return HistGradientBoostingRegressor(max_iter=count, **settings)


def table(
    zoo_table: pa.Table, feature_sets: Sequence[FeatureSet], targets: Sequence[Target], seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of probes.json for a zoo's models.parquet and features in its row order; see `evaluate`."""
    return evaluate(zoo_table, feature_sets, targets, seed).rows


# Small problems gain nothing from more threads, and lose minutes where other processes want the same cores.
@threadpool_limits.wrap(limits=1)
def evaluate(
    zoo_table: pa.Table, feature_sets: Sequence[FeatureSet], targets: Sequence[Target], seed: int = 0
) -> Evaluation:
    """Probe every target from every feature set; the shuffled control is on the first embedding, else `statistics`."""
    rows, evaluation = read_rows(zoo_table), Evaluation()
    _check_features(feature_sets, rows)
    problems = list(pose_all(rows, targets, evaluation.excluded))
    if not problems:
        raise ValueError(f"No target can be probed: {evaluation.excluded or 'none was given'}")
    control = min(feature_sets, key=lambda features: (features.kind != "embedding", features.name != "statistics"))
    shuffled: list[dict[str, Any]] = []
    for features in feature_sets:
        designs: dict[bytes, Design] = {}
        for problem in problems:
            logger.info("Probing %s from %s.", problem.target.name, features.name)
            key = problem.train.tobytes()
            if key not in designs:
                designs[key] = Design(features.values[problem.train], rows.model[problem.train])
            evaluation.predictions.extend(_predictions(problem, features, designs[key]))
            if features is control:
                shuffled += _shuffled_rows(problem, features, designs[key], seed)
    for problem in problems:
        evaluation.rows.extend(_scored_rows(problem, [p for p in evaluation.predictions if p.problem is problem], seed))
    evaluation.rows.extend(shuffled)
    return evaluation


def _check_features(feature_sets: Sequence[FeatureSet], rows: Rows) -> None:
    """Refuse features that do not fit the table, share a name, or are not finite on a row that may be used."""
    names = [features.name for features in feature_sets]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Expected features with different names, found {names}.")
    for features in feature_sets:
        if features.values.shape != (expected := (len(rows.model), len(features.names))):
            raise ValueError(f"Features '{features.name}' have shape {features.values.shape}, expected {expected}.")
        broken = ~np.isfinite(features.values) & ~diverged(rows)[:, None]
        if broken.any():
            row, column = np.argwhere(broken)[0]
            raise ValueError(
                f"Features '{features.name}' hold {int(broken.sum())} value(s) that are not finite, the first in "
                f"column '{features.names[column]}' at row {row}; recompute them, or mark the model as diverged."
            )


def _predictions(problem: Problem, features: FeatureSet, design: Design) -> Iterator[Prediction]:
    """Fit the probes that suit a target and a feature set, and predict the test rows for each metric."""
    y, values = problem.y[problem.train], features.values[problem.test]
    if problem.target.kind == "classification":
        yield Prediction(problem, features, "logistic", "accuracy", design.logistic(y, values))
        return
    labels = np.stack([y, problem.residual[problem.train]], axis=1)
    fits = {"ridge": design.ridge(labels, values)}
    if features.kind == "baseline":
        fits["gradient_boosting"] = np.stack([design.boosting(label, values) for label in labels.T], axis=1)
    for probe, fit in fits.items():
        for metric, column in REGRESSION_METRICS:
            yield Prediction(problem, features, probe, metric, fit[:, column])


def _scored_rows(problem: Problem, predictions: Sequence[Prediction], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of each prediction, then rows of the embeddings' differences from the baselines on the same resamples."""
    resamples = Resamples(problem, NUM_RESAMPLES, seed)
    drawn = {(p.features.name, p.probe, p.metric): resamples.measure(p.metric, p.predicted) for p in predictions}
    learned_with = {p.features.name: p.features.learned_with for p in predictions}
    for (name, probe, metric), draws in drawn.items():
        yield _row(problem, metric, (name, probe, learned_with[name]), draws)
    learned = {p.features.name for p in predictions if p.features.kind == "embedding"}
    for (name, probe, metric), (baseline, other) in itertools.product(drawn, BASELINES):
        if name in learned and metric in DIFFERENCE_METRICS and (baseline, other, metric) in drawn:
            label = (f"{name} - {baseline}", probe if probe == other else f"{probe} - {other}", learned_with[name])
            yield _row(problem, metric, label, drawn[name, probe, metric] - drawn[baseline, other, metric])


def _shuffled_rows(problem: Problem, features: FeatureSet, design: Design, seed: int) -> list[dict[str, Any]]:
    """Rows of a ridge refit on labels permuted between models; classes are the largest of one ridge output each."""
    generator, sample = keyed(seed, "shuffled", problem), Resamples(problem, 0, seed)
    values, found = features.values[problem.test], dict[str, list[float]]()
    y, residual = problem.y[problem.train], problem.residual[problem.train]
    classes, codes = np.unique(y, return_inverse=True)
    for _ in range(NUM_PERMUTATIONS):
        order = shuffled_order(problem, False, generator)
        if problem.target.kind == "classification":
            outputs = design.ridge(np.eye(len(classes))[codes[order]], values)
            guesses = {"accuracy": classes[np.argmax(outputs, axis=1)]}
        else:
            labels = np.stack([y[order], residual[shuffled_order(problem, True, generator)]], axis=1)
            fit = design.ridge(labels, values)
            guesses = {metric: fit[:, column] for metric, column in REGRESSION_METRICS}
        for metric, guess in guesses.items():
            found.setdefault(metric, []).append(sample.measure(metric, guess)[0])
    draws = {metric: np.array([np.mean(values), *values]) for metric, values in found.items()}
    label = ("shuffled", "ridge", features.learned_with)
    return [_row(problem, metric, label, draws[metric]) | {"of": features.name} for metric in draws]


def _row(problem: Problem, metric: str, label: tuple[str, str, str | None], draws: np.ndarray) -> dict[str, Any]:
    """One row of probes.json, from (features, probe, learned_with) and draws: its value, then its interval's."""
    known = draws[1:][np.isfinite(draws[1:])]
    interval = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    value, low, high = (float(number) if np.isfinite(number) else None for number in (draws[0], *interval))
    row: dict[str, Any] = dict(zip(("features", "probe", "learned_with"), label, strict=True)) | {"metric": metric}
    row |= {"target": problem.target.name, "split": problem.split, "value": value, "low": low, "high": high}
    num_test = np.sum(problem.seen[problem.test]) if metric == "r2_within_cell" else len(problem.test)
    return row | {"num_train": len(problem.train), "num_test": int(num_test), "num_seeds": 1}
