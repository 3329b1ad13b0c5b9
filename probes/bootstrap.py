"""Bootstrap over test models: values of a metric on resamples of whole models, the same for every probe."""

from __future__ import annotations

import zlib

import numpy as np
import scipy.stats

from probes.targets import Problem

# Kendall's tau has no per-model sums to resample, so each draw sorts all rows again.
NUM_KENDALL_RESAMPLES = 200


class Resamples:
    """Bootstrap resamples of a problem's test models, all rows of one together; the first is the sample as it is."""

    def __init__(self, problem: Problem, count: int, seed: int) -> None:
        self.problem = problem
        names, self.codes = np.unique(problem.rows.model[problem.test], return_inverse=True)
        draws = keyed(seed, "bootstrap", problem).integers(len(names), size=(count, len(names)))
        self.counts = np.array([np.ones(len(names), int), *(np.bincount(draw, minlength=len(names)) for draw in draws)])

    def measure(self, metric: str, predicted: np.ndarray) -> np.ndarray:
        """Values (1 + count) of a metric of predicted (num_test) on the sample, then on each resample."""
        true = self.problem.truth(metric)
        if metric == "kendall_tau":
            counts = (count[self.codes] for count in self.counts[: 1 + NUM_KENDALL_RESAMPLES])
            pairs = ((np.repeat(true, count), np.repeat(predicted, count)) for count in counts)
            return np.array([scipy.stats.kendalltau(*pair, method="asymptotic").statistic for pair in pairs])
        ones = np.ones(len(true))
        if metric == "accuracy":
            return np.divide(*self._sums(true == predicted, ones))
        if metric == "r2_within_cell":
            error, squares = self._sums((true - predicted) ** 2 * self.problem.seen[self.problem.test], true**2)
        else:
            centred = (true - true.mean()) * (np.ptp(true) > 0)
            error, squares, total, rows = self._sums((true - predicted) ** 2, centred**2, centred, ones)
            squares -= total**2 / rows
        return 1 - np.divide(error, squares, out=np.full(len(squares), np.nan), where=squares > 1e-12 * squares[0])

    def _sums(self, *terms: np.ndarray) -> list[np.ndarray]:
        """Sum each term (num_test) over each resample (1 + count)."""
        return [self.counts @ np.bincount(self.codes, weights=term) for term in terms]


def keyed(seed: int, purpose: str, problem: Problem) -> np.random.Generator:
    """Random numbers of their own for each seed, purpose, split and target."""
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}/{problem.split}/{problem.target.name}".encode())])
