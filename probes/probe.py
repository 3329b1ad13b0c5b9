"""Probes on frozen features: ridge, logistic regression and gradient boosting, fit on training rows alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.preprocessing import StandardScaler

from probes.boosting import Boosting, Fit
from probes.bundles import Bundles
from probes.ridge import LeftOut, RidgePath

NUM_FOLDS = 3
MOST_TREES = 1000
ROUNDING = 4 * np.finfo(np.float32).eps
"""Share of its largest number by which a column varies that is constant but for rounding: files hold float32."""
MANY_COLUMNS = 1000
"""Columns from which on boosted trees read bundles: below, all columns are .00 to .01 of R2 better and cost seconds."""
# From strong to weak, so that ties go to the stronger penalty.
RIDGE_ALPHAS = np.logspace(6, -3, 19)
LOGISTIC_ALPHAS = (1e6, 1e4, 1e3, 1e2, 1e1, 1e0)


class Design:
    """Training features (rows, columns) with the model of each row (rows), from which every probe is fit.

    Columns are standardised by the training rows alone; one that is constant there becomes 0 and has no say. Penalties
    of ridge regression are chosen by leaving out one model at a time with all its rows, those of logistic regression by
    cross-validation of models, numbers of trees on validation rows, of models that no fit has seen: `validation`
    (val rows, columns), or a fold of the training models if there are none.
    """

    def __init__(self, values: np.ndarray, models: np.ndarray, validation: np.ndarray | None = None) -> None:
        self.scaler, self.models = StandardScaler().fit(values), models
        # So a column that is constant in training is 0 on every row, whatever it is elsewhere.
        self.constant = np.ptp(values, axis=0) <= ROUNDING * np.abs(values).max(axis=0)
        self.scaler.scale_[self.constant] = np.inf
        self.x = self.scaler.transform(values)
        validation = values[:0] if validation is None else validation
        self.x_val = self.scaler.transform(validation) if len(validation) else self.x[:0]
        self.sides = (values, validation)
        self.path = RidgePath(self.x)

    @cached_property
    def left_out(self) -> LeftOut:
        """Errors of ridge regression on training models that it was not fit on."""
        return LeftOut(self.path, self.models, RIDGE_ALPHAS.tolist())

    @cached_property
    def bundles(self) -> Callable[[np.ndarray], np.ndarray]:
        """The columns (rows, any) that boosted trees read of values (rows, columns): bundles where there are many."""
        if self.x.shape[1] >= MANY_COLUMNS:
            return Bundles(np.where(self.constant, 0.0, self.sides[0]))
        return lambda values: np.where(self.constant, 0.0, values)

    @cached_property
    def bundled(self) -> tuple[np.ndarray, np.ndarray]:
        """Bundled columns of training rows (rows, bundles) and validation rows (val rows, bundles)."""
        fit, val = map(self.bundles, self.sides)
        return fit, val

    def folds(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of row numbers (fit, held out) such that no model is on both sides."""
        folds = GroupKFold(n_splits=min(count, len(np.unique(self.models))))
        yield from folds.split(self.x, groups=self.models)

    def ridge(self, y: np.ndarray, values: np.ndarray, y_val: np.ndarray | None = None) -> Fit:
        """Ridge predictions (test rows, outputs) for y (rows, outputs), each output with a penalty of its own.

        The error is that on the validation rows, whose labels are y_val (val rows, outputs), else on models left out.
        """
        errors = self.left_out.errors(y)
        best, error = RIDGE_ALPHAS[np.argmin(errors, axis=0)], np.min(errors, axis=0)
        x = np.concatenate([self.x_val, self.scaler.transform(values)])
        guess, predicted = np.split(self.path.predict(x, y, [best])[0], [len(self.x_val)])
        if y_val is not None and len(self.x_val):
            error = np.mean((y_val - guess) ** 2, axis=0)
        return Fit(predicted, error)

    def boosting(self, y: np.ndarray, values: np.ndarray, y_val: np.ndarray | None = None) -> Boosting:
        """The task of predicting y (rows) by boosted trees that stop on validation rows (y_val), else on a fold."""
        x, x_val = self.bundled
        return Boosting(x, y, x_val, y_val, next(self.folds(NUM_FOLDS)), self.bundles(values), MOST_TREES)

    def logistic(self, y: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Classes (test rows) by logistic regression for classes y (rows)."""
        folds = [fold for fold in self.folds(NUM_FOLDS) if len(set(y[fold[0]])) > 1]
        grid = {"C": [1 / alpha for alpha in LOGISTIC_ALPHAS]}
        search = GridSearchCV(LogisticRegression(max_iter=100, tol=1e-3), grid, cv=folds or [(np.arange(len(y)),) * 2])
        with warnings.catch_warnings():
            # A weak penalty stops before it converges, which is one more choice that cross-validation judges.
            warnings.simplefilter("ignore", ConvergenceWarning)
            predicted: np.ndarray = search.fit(self.x, y).predict(self.scaler.transform(values))
            return predicted
