"""Bootstrap over test models: values of a metric on resamples of whole models, the same for every probe."""

from __future__ import annotations

import zlib

import numpy as np
import scipy.stats

from probes.problem import Question

# Kendall's tau has no per-model sums to resample, so each draw sorts all rows again.
NUM_KENDALL_RESAMPLES = 200
# Pairs of so many rows with all others of their cell are compared at a time, which bounds memory.
PAIRS_BLOCK = 1024


class Resamples:
    """Bootstrap resamples of a question's test models, all rows of one together; the first is the sample as it is."""

    def __init__(self, question: Question, count: int, seed: int) -> None:
        self.question = question
        names, self.codes = np.unique(question.model, return_inverse=True)
        generator = keyed(seed, "bootstrap", question.split, question.target.name)
        draws = generator.integers(len(names), size=(count, len(names)))
        self.counts = np.array([np.ones(len(names), int), *(np.bincount(draw, minlength=len(names)) for draw in draws)])

    def measure(self, metric: str, predicted: np.ndarray) -> np.ndarray:
        """Values (1 + count) of a metric of predicted (num_test) on the sample, then on each resample."""
        true = self.question.truth(metric)
        if metric == "kendall_tau" and self.question.within_cells:
            return self._tau_within_cells(true, predicted)
        if metric == "kendall_tau":
            counts = (count[self.codes] for count in self.counts[: 1 + NUM_KENDALL_RESAMPLES])
            pairs = ((np.repeat(true, count), np.repeat(predicted, count)) for count in counts)
            return np.array([_tau(*pair) for pair in pairs])
        if metric == "accuracy":
            shares: np.ndarray = np.divide(*self._sums(true == predicted, np.ones(len(true))))
            return shares
        if metric == "r2_within_cell":
            error, squares = self._sums((true - predicted) ** 2 * self.question.seen, true**2)
        else:
            (error,) = self._sums((true - predicted) ** 2)
            squares = self._squares(true)
        varies = squares > 1e-12 * squares[0]
        unexplained: np.ndarray = np.divide(error, squares, out=np.full(len(squares), np.nan), where=varies)
        return 1 - unexplained

    def undefined(self, metric: str, predicted: np.ndarray) -> str:
        """Why a metric of predicted (num_test) has no value on the sample, in words."""
        question, true = self.question, self.question.truth(metric)
        if metric == "r2_within_cell" and not question.seen.any():
            return "training has seen the cell of no test row"
        if metric == "r2_within_cell":
            return "the label does not vary within cells on the test rows"
        if metric == "kendall_tau" and question.within_cells:
            return "no two test rows of one cell differ in the label"
        if metric == "kendall_tau" and len(true) > 1 and np.ptp(true) > 0:
            return f"the prediction is {'the same' if np.ptp(predicted) == 0 else 'not finite'} on all test rows"
        return "the label does not vary on the test rows" + " of any fold" * (len(question.problems) > 1)

    def _squares(self, true: np.ndarray) -> np.ndarray:
        """Squared deviations (1 + count) from the mean of each fold's test rows, summed over rows and folds."""
        squares = np.zeros(len(self.counts))
        for fold in np.unique(self.question.fold):
            rows_of_fold = self.question.fold == fold
            centred = np.where(rows_of_fold, true - true[rows_of_fold].mean(), 0.0) * (np.ptp(true[rows_of_fold]) > 0)
            square, total, rows = self._sums(centred**2, centred, rows_of_fold)
            squares += square - np.divide(total**2, rows, out=np.zeros(len(rows)), where=rows > 0)
        return squares

    def _tau_within_cells(self, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Kendall's tau-b (1 + count) over pairs of rows of one cell, which are never of one model.

        A pair counts as often as both of its models were drawn: c_i c_j; copies of a model are ties on both sides. A
        prediction that tells no pair apart, as of a family whose columns training never saw, knows no order: 0.
        """
        concordant, apart, told_apart = np.zeros((3, len(self.counts)))
        for cell in np.unique(self.question.cell):
            rows = np.flatnonzero(self.question.cell == cell)
            counts = self.counts[:, self.codes[rows]].astype(float)
            for block in np.array_split(np.arange(len(rows)), np.ceil(len(rows) / PAIRS_BLOCK)):
                order, guess = (np.sign(x[rows][block, None] - x[rows]) for x in (true, predicted))
                for total, pairs in ((concordant, order * guess), (apart, order**2), (told_apart, guess**2)):
                    total += np.sum((counts[:, block] @ pairs) * counts, axis=1)
        ordered = np.sqrt(apart * np.maximum(told_apart, 1))
        tau: np.ndarray = np.divide(concordant, ordered, out=np.full(len(ordered), np.nan), where=apart > 0)
        return tau

    def _sums(self, *terms: np.ndarray) -> list[np.ndarray]:
        """Sum each term (num_test) over each resample (1 + count)."""
        return [self.counts @ np.bincount(self.codes, weights=term) for term in terms]


def _tau(true: np.ndarray, predicted: np.ndarray) -> float:
    """Kendall's tau-b of numbers (rows), NaN where one side does not vary."""
    # The p-value, which is not used, divides by the number of rows less two in its asymptotic form.
    method = "asymptotic" if len(true) > 2 else "auto"
    return float(scipy.stats.kendalltau(true, predicted, method=method).statistic)


def keyed(seed: int, *purpose: str) -> np.random.Generator:
    """Random numbers of their own for each seed and purpose (of a split and a target)."""
    return np.random.default_rng([seed, zlib.crc32("/".join(purpose).encode())])
