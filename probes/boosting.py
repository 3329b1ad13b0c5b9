"""Gradient boosting of several targets, each by a fit of its own, on as many cores as there are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.utils.parallel import Parallel, delayed
from threadpoolctl import threadpool_limits

from weightspace.container import num_cores

PATIENCE = 30
"""Trees without improvement on validation rows after which boosting ends."""
WORTH_A_PROCESS = 1_000_000
"""Numbers in the training rows from which on a fit takes seconds, and so long that it may run in another process."""


@dataclass(frozen=True)
class Fit:
    """Predictions (test rows, ...) of a probe, and its mean squared error (...) on rows that it was not fit on."""

    predicted: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class Boosting:
    """Arrays for one fit: x (rows, columns) and y (rows), those of validation rows, and x of the rows to predict.

    Without validation rows, the rows `fold` (fit, held out) choose the number of trees, and all rows are fit again.
    """

    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray | None
    fold: tuple[np.ndarray, np.ndarray]
    x_test: np.ndarray
    most_trees: int

    def fit(self) -> Fit:
        """Predictions by boosted trees (Friedman, 2001), the same in every process."""
        with threadpool_limits(limits=1):
            if len(self.x_val) and self.y_val is not None:
                trees, count, error = self._stopped(self.x, self.y, self.x_val, self.y_val)
            else:
                fit, held = self.fold
                _, count, error = self._stopped(self.x[fit], self.y[fit], self.x[held], self.y[held])
                trees = make_trees(count).fit(self.x, self.y)
            predicted = next(itertools.islice(trees.staged_predict(self.x_test), count - 1, None))
        return Fit(predicted, np.array(error))

    def _stopped(
        self, x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray
    ) -> tuple[HistGradientBoostingRegressor, int, float]:
        """Trees grown until validation rows gain no more from them, the best number of trees, and its squared error."""
        trees = make_trees(self.most_trees, early_stopping=True, n_iter_no_change=PATIENCE, tol=0.0)
        trees.fit(x, y, X_val=x_val, y_val=y_val)
        # The scores are minus half the mean squared error, of no tree first.
        errors = -2 * trees.validation_score_[1:]
        return trees, 1 + int(np.argmin(errors)), float(np.min(errors))


def make_trees(count: int, **stopping: Any) -> HistGradientBoostingRegressor:
    """Boosted trees, at most `count`; each split looks at a fifth of the columns, so that trees differ."""
    settings = {"learning_rate": 0.07, "max_leaf_nodes": 15, "max_bins": 64, "max_features": 0.2, "random_state": 0}
    return HistGradientBoostingRegressor(max_iter=count, **settings, **{"early_stopping": False, **stopping})


def fit_all(tasks: Sequence[Boosting]) -> list[Fit]:
    """The fits of all tasks, in their order: of large ones as many at a time as there are cores."""
    workers = min(num_cores(), sum(task.x.size >= WORTH_A_PROCESS for task in tasks))
    if workers < 2:
        return [task.fit() for task in tasks]
    with _imports_of_the_parent():
        fits: list[Fit] = Parallel(n_jobs=workers)(delayed(Boosting.fit)(task) for task in tasks)
    return fits


@contextmanager
def _imports_of_the_parent() -> Iterator[None]:
    """Keep the working folder out of the import path of processes that start meanwhile: it may hold a numpy.py."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
