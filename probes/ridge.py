"""Ridge regression for every penalty, and its errors on models left out, from one eigen-decomposition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CACHED_ROWS = 32
"""Rows whose share of the hat matrix is computed at a time, for all penalties: their scores fit into a cache."""


class RidgePath:
    """Ridge regression with an intercept on x (rows, columns) for every penalty, from one eigen-decomposition.

    Minimises |y - x w - b|^2 + alpha |w|^2 (Hoerl and Kennard, 1970); the smaller of both Gram matrices is decomposed.
    """

    def __init__(self, x: np.ndarray) -> None:
        self.mean = x.mean(axis=0)
        centred = x - self.mean
        dual = x.shape[0] < x.shape[1]
        values, vectors = np.linalg.eigh(centred @ centred.T if dual else centred.T @ centred)
        self.values = np.maximum(values, 0.0)
        self.basis = centred.T @ vectors if dual else vectors
        self.scores = centred @ self.basis
        self.project = vectors.T if dual else self.scores.T

    def predict(self, x: np.ndarray, y: np.ndarray, alphas: Sequence[float | np.ndarray]) -> np.ndarray:
        """Predictions (penalties, test rows, outputs) on x (test rows, columns) from y (rows, outputs).

        A penalty is a number, or one for each output (outputs).
        """
        return self._predicted((x - self.mean) @ self.basis, y, alphas)

    def fitted(self, y: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
        """Predictions (penalties, rows, outputs) on the rows of the fit from y (rows, outputs)."""
        return self._predicted(self.scores, y, alphas)

    def _predicted(self, scores: np.ndarray, y: np.ndarray, alphas: Sequence[float | np.ndarray]) -> np.ndarray:
        """Predictions (penalties, test rows, outputs): one product, as `scores` may be larger than a cache."""
        penalties = np.stack([np.broadcast_to(alpha, y.shape[1:]) for alpha in alphas])
        weights = (self.project @ (y - y.mean(axis=0)))[:, None] / (self.values[:, None, None] + penalties)
        predicted = (scores @ weights.reshape(len(weights), -1)).reshape(len(scores), *penalties.shape)
        moved: np.ndarray = np.moveaxis(predicted, 1, 0) + y.mean(axis=0)
        return moved

    def hat(self, rows: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
        """Blocks (penalties, models, m, m) of the matrix that maps labels to fitted labels, for rows (models, m)."""
        scores, project = self.scores[rows], self.project.T[rows].swapaxes(1, 2)
        blocks: np.ndarray = np.stack([scores / (self.values + alpha) @ project for alpha in alphas])
        return blocks + 1 / len(self.scores)


class LeftOut:
    """Residuals of ridge regression on each model when it alone is left out of the fit, for every penalty.

    They follow from the fit on all models: r_g = (I - H_gg)^-1 (y - H y)_g, where H_gg is the block of the hat matrix
    at the rows of model g (Cook and Weisberg, Residuals and Influence in Regression, 1982). Columns stay standardised
    by all models.
    """

    def __init__(self, path: RidgePath, models: np.ndarray, alphas: Sequence[float]) -> None:
        self.path, self.alphas = path, alphas
        order = np.argsort(models, kind="stable")
        counts = np.unique(models, return_counts=True)[1]
        starts = np.cumsum(counts) - counts
        self.rows = [order[starts[counts == size][:, None] + np.arange(size)] for size in np.unique(counts)]
        self.inverse = [self._inverse(rows) for rows in self.rows]

    def _inverse(self, rows: np.ndarray) -> np.ndarray:
        """(I - H_gg)^-1 (penalties, models, m, m) of models with `rows` (models, m)."""
        parts = np.array_split(rows, 1 + rows.size // CACHED_ROWS)
        blocks = np.concatenate([self.path.hat(part, self.alphas) for part in parts], axis=1)
        inverse: np.ndarray = np.linalg.pinv(np.eye(rows.shape[1]) - blocks, hermitian=True)
        return inverse

    def errors(self, y: np.ndarray) -> np.ndarray:
        """Mean squared errors (penalties, outputs) of y (rows, outputs) on models left out."""
        residuals = y - self.path.fitted(y, self.alphas)
        errors = np.zeros((len(self.alphas), y.shape[1]))
        for rows, inverse in zip(self.rows, self.inverse, strict=True):
            errors += np.sum(np.square(inverse @ residuals[:, rows]), axis=(1, 2))
        return errors / len(y)
