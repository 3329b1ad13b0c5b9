"""Probes on frozen features: ridge, logistic regression and gradient boosting, fit on training rows alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.preprocessing import StandardScaler

# Fewer folds where every fold costs seconds.
NUM_FOLDS, NUM_SLOW_FOLDS = 5, 3
# From strong to weak, so that ties go to the stronger penalty.
RIDGE_ALPHAS = np.logspace(6, -3, 19)
LOGISTIC_ALPHAS = (1e6, 1e4, 1e3, 1e2, 1e1, 1e0)
BOOSTING_ITERATIONS = (5, 20, 40, 80)


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
        predicted: np.ndarray = best.fit(self.x, y).predict(self.scaler.transform(values))
        return predicted

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


def _trees(count: int) -> HistGradientBoostingRegressor:
    """Boosted trees that stop after `count`: stopping early on random rows would let a model judge itself."""
    settings = {"learning_rate": 0.15, "max_leaf_nodes": 15, "max_bins": 64, "early_stopping": False, "random_state": 0}
    return HistGradientBoostingRegressor(max_iter=count, **settings)
