"""Probes on frozen features: ridge, logistic regression and gradient boosting, fit on training rows alone."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.preprocessing import StandardScaler

# Fewer folds where every fold costs seconds.
NUM_FOLDS, NUM_SLOW_FOLDS = 5, 3
MOST_TREES = 1000
PATIENCE = 30
"""Trees without improvement on validation rows after which boosting ends."""
# From strong to weak, so that ties go to the stronger penalty.
RIDGE_ALPHAS = np.logspace(6, -3, 19)
LOGISTIC_ALPHAS = (1e6, 1e4, 1e3, 1e2, 1e1, 1e0)


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


@dataclass(frozen=True)
class Fit:
    """Predictions (test rows, ...) of a probe, and its mean squared error (...) on rows that it was not fit on."""

    predicted: np.ndarray
    error: np.ndarray


class Design:
    """Training features (rows, columns) with the model of each row (rows), from which every probe is fit.

    Columns are standardised by the training rows alone; one that is constant there becomes 0 and has no say. Penalties
    are chosen by cross-validation in which all rows of a model stay together, numbers of trees on validation rows, of
    models that no fit has seen: those of `validation` (val rows, columns), or a fold of the training models if empty.
    """

    def __init__(self, values: np.ndarray, models: np.ndarray, validation: np.ndarray | None = None) -> None:
        self.scaler, self.models = StandardScaler().fit(values), models
        # So a column that is constant in training is 0 on every row, whatever it is elsewhere.
        self.scaler.scale_[np.ptp(values, axis=0) == 0] = np.inf
        self.x = self.scaler.transform(values)
        self.x_val = self.x[:0] if validation is None or not len(validation) else self.scaler.transform(validation)
        self.path = RidgePath(self.x)
        self.fold_paths = [(fit, held, RidgePath(self.x[fit])) for fit, held in self.folds(NUM_FOLDS)]

    def folds(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of row numbers (fit, held out) such that no model is on both sides."""
        folds = GroupKFold(n_splits=min(count, len(np.unique(self.models))))
        yield from folds.split(self.x, groups=self.models)

    def ridge(self, y: np.ndarray, values: np.ndarray, y_val: np.ndarray | None = None) -> Fit:
        """Ridge predictions (test rows, outputs) for y (rows, outputs), each output with a penalty of its own.

        The error is that on the validation rows, whose labels are y_val (val rows, outputs), else of cross-validation.
        """
        errors = np.zeros((len(RIDGE_ALPHAS), y.shape[1]))
        for fit, held, path in self.fold_paths:
            guesses = path.predict(self.x[held], y[fit], RIDGE_ALPHAS)
            errors += [np.sum((y[held] - guess) ** 2, axis=0) for guess in guesses]
        best = RIDGE_ALPHAS[np.argmin(errors, axis=0)]
        error = np.min(errors, axis=0) / len(y)
        x = np.concatenate([self.x_val, self.scaler.transform(values)])
        guess, predicted = np.split(next(self.path.predict(x, y, [best])), [len(self.x_val)])
        if y_val is not None and len(self.x_val):
            error = np.mean((y_val - guess) ** 2, axis=0)
        return Fit(predicted, error)

    def boosting(self, y: np.ndarray, values: np.ndarray, y_val: np.ndarray | None = None) -> Fit:
        """Gradient boosting predictions (test rows) for y (rows) (Friedman, 2001), stopped on validation rows (y_val).

        Without validation rows, a fold of the training models chooses the number of trees, and all rows are fit again.
        """
        x, x_test = self.x, self.scaler.transform(values)
        if len(self.x_val) and y_val is not None:
            trees, count, error = _stopped(x, y, self.x_val, y_val)
        else:
            fit, held = next(self.folds(NUM_SLOW_FOLDS))
            _, count, error = _stopped(x[fit], y[fit], x[held], y[held])
            trees = _trees(count).fit(x, y)
        predicted = next(itertools.islice(trees.staged_predict(x_test), count - 1, None))
        return Fit(predicted, np.array(error))

    def logistic(self, y: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Classes (test rows) by logistic regression for classes y (rows)."""
        folds = [fold for fold in self.folds(NUM_SLOW_FOLDS) if len(set(y[fold[0]])) > 1]
        grid = {"C": [1 / alpha for alpha in LOGISTIC_ALPHAS]}
        search = GridSearchCV(LogisticRegression(max_iter=100, tol=1e-3), grid, cv=folds or [(np.arange(len(y)),) * 2])
        with warnings.catch_warnings():
            # A weak penalty stops before it converges, which is one more choice that cross-validation judges.
            warnings.simplefilter("ignore", ConvergenceWarning)
            predicted: np.ndarray = search.fit(self.x, y).predict(self.scaler.transform(values))
            return predicted


def _stopped(
    x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray
) -> tuple[HistGradientBoostingRegressor, int, float]:
    """Trees grown until validation rows no longer gain from more, the best number of them, and its squared error."""
    trees = _trees(MOST_TREES, early_stopping=True, n_iter_no_change=PATIENCE, tol=0.0)
    trees.fit(x, y, X_val=x_val, y_val=y_val)
    # The scores are minus half the mean squared error, of no tree first.
    errors = -2 * trees.validation_score_[1:]
    return trees, 1 + int(np.argmin(errors)), float(np.min(errors))


def _trees(count: int, **stopping: Any) -> HistGradientBoostingRegressor:
    """Boosted trees, at most `count`; each split looks at a fifth of the columns, so that trees differ."""
    settings = {"learning_rate": 0.07, "max_leaf_nodes": 15, "max_bins": 64, "max_features": 0.2, "random_state": 0}
    return HistGradientBoostingRegressor(max_iter=count, **settings, **{"early_stopping": False, **stopping})
