"""Rows of probes.json: metrics of predictions with intervals, differences between features, the shuffled control."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.bootstrap import Resamples
from probes.feature_sets import Baseline, Beside, Embedding
from probes.fitting import Prediction, metrics_of
from probes.problem import Question

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Scored:
    """A prediction with its metric on the sample and then on each resample (1 + count), NaN where it has no value."""

    prediction: Prediction
    draws: np.ndarray
    reason: str | None

    @property
    def name(self) -> str:
        """The name of its features."""
        return self.prediction.features.name


def scored_rows(question: Question, predictions: Sequence[Prediction], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of each prediction, then of the embeddings' differences from baselines on the same resamples."""
    resamples = Resamples(question, NUM_RESAMPLES, seed)
    scored = [_scored(resamples, prediction) for prediction in predictions]
    for score in scored:
        label = (score.name, score.prediction.probe, score.prediction.features.learned_with)
        yield _row(question, score.prediction.metric, label, score.draws, score.reason) | {
            "label_adjacent": _adjacent(question, score)
        }
    for metric in [metric for metric, _ in metrics_of(question.split)[:2]]:
        yield from _differences(question, [score for score in scored if score.prediction.metric == metric])


def _scored(resamples: Resamples, prediction: Prediction) -> Scored:
    draws = resamples.measure(prediction.metric, prediction.predicted)
    defined = np.isfinite(draws[0])
    return Scored(prediction, draws, None if defined else resamples.undefined(prediction.metric, prediction.predicted))


def strongest(predictions: Sequence[Prediction], reads: str) -> Prediction | None:
    """The baseline prediction of this kind with the least error on validation rows, of one question and metric.

    Test rows have no say, so that the interval of a difference from it is that of one comparison fixed beforehand.
    """
    of_kind = [p for p in predictions if isinstance(p.features, Baseline) and p.features.reads == reads]
    return min(of_kind, key=lambda prediction: prediction.error, default=None)


def _differences(question: Question, scored: Sequence[Scored]) -> Iterator[dict[str, Any]]:
    """Rows of what embeddings are better than baselines by, and of what they add to one, in one metric."""
    predictions = [score.prediction for score in scored]
    bars = {reads: strongest(predictions, reads) for reads in ("weights", "queries")}
    for score in scored:
        features, probe = score.prediction.features, score.prediction.probe
        for other in scored:
            against = other.prediction
            if isinstance(features, Beside) and against.features is features.baseline and against.probe == probe:
                yield _difference(question, score, other) | {"adds": True}
            elif isinstance(features, Embedding) and features.learned and _is_comparable(features, against):
                yield _difference(question, score, other) | {"strongest": against is bars[features.reads]}


def _is_comparable(features: Embedding, against: Prediction) -> bool:
    """Whether an embedding is set against a prediction: of any baseline, or of its encoder untrained."""
    if isinstance(against.features, Baseline):
        return True
    return isinstance(against.features, Embedding) and not against.features.learned and (
        against.features.encoder == features.encoder
    )


def _difference(question: Question, score: Scored, other: Scored) -> dict[str, Any]:
    probes = (score.prediction.probe, other.prediction.probe)
    probe = probes[0] if probes[0] == probes[1] else " - ".join(probes)
    label = (f"{score.name} - {other.name}", probe, score.prediction.features.learned_with)
    row = _row(question, score.prediction.metric, label, score.draws - other.draws, score.reason or other.reason)
    return row | {"label_adjacent": _adjacent(question, score) or _adjacent(question, other)}


def _adjacent(question: Question, score: Scored) -> bool:
    """Whether features were made from ingredients of the label."""
    return question.target.name in score.prediction.features.label_adjacent


def shuffled_rows(permuted: Sequence[Prediction], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the control, each with the spread of its metric over permutations."""
    for prediction in permuted:
        sample = Resamples(prediction.question, 0, seed)
        values = np.array([sample.measure(prediction.metric, guess)[0] for guess in prediction.predicted])
        # A permutation that leads to one prediction for all rows has no order, others have.
        known = values[np.isfinite(values)]
        draws = np.array([np.mean(known) if len(known) else np.nan, *values])
        label = ("shuffled", prediction.probe, prediction.features.learned_with)
        reason = None if len(known) else sample.undefined(prediction.metric, prediction.predicted[0])
        row = _row(prediction.question, prediction.metric, label, draws, reason)
        yield row | {"of": prediction.features.name, "label_adjacent": False}


def _row(
    question: Question, metric: str, label: tuple[str, str, str | None], draws: np.ndarray, reason: str | None
) -> dict[str, Any]:
    """One row of probes.json, from (features, probe, learned_with) and draws: its value, then its interval's.

    A number that is not defined is null; `reason` says why, and is there only then.
    """
    known = draws[1:][np.isfinite(draws[1:])]
    interval = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    value, low, high = (float(number) if np.isfinite(number) else None for number in (draws[0], *interval))
    row: dict[str, Any] = dict(zip(("features", "probe", "learned_with"), label, strict=True)) | {"metric": metric}
    row |= {"target": question.target.name, "split": question.split, "value": value, "low": low, "high": high}
    if metric == "kendall_tau":
        row["pairs"] = "within_cell" if question.within_cells else "all"
    num_test = np.sum(question.seen) if metric == "r2_within_cell" else len(question.test)
    num_train = np.mean([len(problem.train) for problem in question.problems])
    row |= {"num_train": round(num_train), "num_test": int(num_test), "num_folds": len(question.problems)}
    if low is None:
        row["reason"] = reason or "no resample of the test models has a value"
    return row | {"num_seeds": 1}
