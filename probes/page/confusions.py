"""Shares of each true class that probes give to each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from probes.fitting import Prediction
from probes.page.points import is_shown


def confusions(predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    """For each embedding and target that is a class, its classes and the shares (true, predicted) of each."""
    for prediction in predictions:
        question = prediction.question
        if question.target.kind == "classification" and is_shown(prediction):
            true = question.truth(prediction.metric)
            names = sorted({*true, *prediction.predicted})
            yield {
                "features": prediction.features.name,
                "target": question.target.name,
                "split": question.split,
                "names": names,
                "shares": shares(true, prediction.predicted, names).tolist(),
            }


def shares(true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Shares (true, predicted) of each true class, 0 for a class that no row has."""
    counts = np.array([[np.sum((true == a) & (predicted == b)) for b in names] for a in names])
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
