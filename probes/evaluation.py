"""Every target on every split from every feature set: rows with paired intervals, beside a shuffled control."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from probes.bootstrap import Resamples, keyed
from probes.feature_sets import FeatureSet
from probes.probe import Design
from probes.problem import NotEnoughError, Problem, Question, Rows, diverged, pose, read_rows, shuffled_order, unposed
from probes.targets import Target
from weightspace.store import SPLITS, Division, NothingHeldOutError, divisions

logger = logging.getLogger(__name__)

NUM_RESAMPLES = 1000
NUM_PERMUTATIONS = 40
# Metrics of numbers, by whether training has seen the held-out models' cells, and what they judge: predictions of
# labels (0) or of residuals (1). The first is the headline; differences are taken in the first two.
METRICS = {
    True: (("r2_within_cell", 1), ("r2", 0), ("kendall_tau", 0)),
    False: (("kendall_tau", 1), ("r2", 0)),
}
BASELINES = tuple(itertools.product(("statistics", "spectra"), ("ridge", "gradient_boosting")))

Fits = dict[tuple[str, str], np.ndarray]
"""Predictions by (probe, metric), rows (num_test) last."""


def metrics_of(split: str) -> tuple[tuple[str, int], ...]:
    """The metrics of numbers on a split, headline first."""
    return METRICS[SPLITS[split].seen_cells]


@dataclass(frozen=True)
class Prediction:
    """What a probe said of a question's test rows, predicted (num_test), for one metric."""

    question: Question
    features: FeatureSet
    probe: str
    metric: str
    predicted: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """Rows of probes.json and the predictions behind them.

    excluded: by split and target what was left out. splits: by name what it holds out, its folds and which features
    are unavailable on it and why, or why it was skipped.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    excluded: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)


def divided(zoo_table: pa.Table, splits: Sequence[str] = ()) -> dict[str, list[Division] | str]:
    """The divisions of these splits; of all if none is named, with the reason where the zoo has no rows for one."""
    found: dict[str, list[Division] | str] = {}
    for split in splits or SPLITS:
        try:
            found[split] = divisions(zoo_table, split)
        except NothingHeldOutError as reason:
            if splits:
                raise
            found[split] = str(reason)
    return found


def evaluate(
    zoo_table: pa.Table,
    feature_sets: Sequence[FeatureSet],
    targets: Sequence[Target],
    seed: int = 0,
    splits: Sequence[str] = (),
) -> Evaluation:
    """Probe every target from every feature set on these splits, or on all that the zoo has rows for if none is named.

    The shuffled control is on the first embedding that a split has, else on `statistics`.
    """
    names = [features.name for features in feature_sets]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Expected features with different names, found {names}.")
    rows, evaluation = read_rows(zoo_table), Evaluation()
    # Small problems gain nothing from more threads, and lose minutes where other processes want the same cores.
    with threadpool_limits(limits=1):
        for split, parts in divided(zoo_table, splits).items():
            if isinstance(parts, str):
                evaluation.splits[split] = {"skipped": parts}
            else:
                _evaluate_split(evaluation, rows, parts, feature_sets, targets, seed)
    if not evaluation.rows:
        raise ValueError(f"No target can be probed: {unposed(evaluation.excluded)}")
    return evaluation


def _evaluate_split(
    evaluation: Evaluation,
    rows: Rows,
    parts: Sequence[Division],
    feature_sets: Sequence[FeatureSet],
    targets: Sequence[Target],
    seed: int,
) -> None:
    split = parts[0].split
    refused = {features.name: features.unavailable(parts) for features in feature_sets}
    unavailable = {name: reason for name, reason in refused.items() if reason}
    for name, reason in unavailable.items():
        logger.warning("No rows of %s on %s: %s.", name, split, reason)
    usable = [features for features in feature_sets if features.name not in unavailable]
    held_out = {"description": SPLITS[split].description, "folds": [part.fold for part in parts]}
    evaluation.splits[split] = held_out | {"unavailable": unavailable}
    questions = _questions(rows, targets, parts, evaluation.excluded.setdefault(split, {}))
    control = min(usable, key=lambda features: (not features.learned, features.name != "statistics"), default=None)
    shuffled: list[dict[str, Any]] = []
    for features in usable:
        logger.info("Probing %s from %s.", split, features.name)
        fitted, permuted = _fits(features, questions, seed, with_control=features is control)
        for question in questions:
            for (probe, metric), predicted in fitted[question.target.name].items():
                evaluation.predictions.append(Prediction(question, features, probe, metric, predicted))
            if features is control:
                shuffled += _shuffled_rows(question, features, permuted[question.target.name], seed)
    for question in questions:
        own = [prediction for prediction in evaluation.predictions if prediction.question is question]
        evaluation.rows.extend(_scored_rows(question, own, seed))
    evaluation.rows.extend(shuffled)


def _questions(
    rows: Rows, targets: Sequence[Target], parts: Sequence[Division], excluded: dict[str, dict[str, Any]]
) -> list[Question]:
    """Pose every target on the divisions of a split, noting in `excluded`, by target, what was left out and why."""
    questions = []
    for target in targets:
        problems: list[Problem] = []
        notes: dict[int | None, dict[str, Any]] = {}
        for part in parts:
            try:
                problem = pose(rows, target, part)
            except NotEnoughError as reason:
                logger.warning("Skipping %s on %s: %s", target.name, part.name, reason)
                notes[part.fold] = {"skipped": str(reason)}
            else:
                problems.append(problem)
                notes[part.fold] = problem.excluded
        excluded[target.name] = notes[None] if None in notes else {"folds": {str(k): v for k, v in notes.items()}}
        if problems:
            questions.append(Question(tuple(problems)))
    return questions


def _fits(
    features: FeatureSet, questions: Sequence[Question], seed: int, with_control: bool
) -> tuple[dict[str, Fits], dict[str, Fits]]:
    """Predictions of every question by target, each fold by a fit of its own, and those on permuted labels."""
    parts: dict[int | None, list[Problem]] = {}
    for problem in (problem for question in questions for problem in question.problems):
        parts.setdefault(problem.division.fold, []).append(problem)
    found: tuple[dict[str, list[Fits]], dict[str, list[Fits]]] = ({}, {})
    for problems in parts.values():
        values = _values(features, problems[0])
        designs: dict[bytes, Design] = {}
        for problem in problems:
            key = problem.train.tobytes()
            if key not in designs:
                designs[key] = Design(values[problem.train], problem.rows.model[problem.train])
            name, held_out = problem.target.name, values[problem.test]
            found[0].setdefault(name, []).append(_predicted(problem, designs[key], held_out, not features.learned))
            if with_control:
                found[1].setdefault(name, []).append(_permuted(problem, designs[key], held_out, seed))
    first, second = ({name: _joined(fits) for name, fits in side.items()} for side in found)
    return first, second


def _joined(fits: Sequence[Fits]) -> Fits:
    """The predictions of all folds, one after another."""
    return {key: np.concatenate([one[key] for one in fits], axis=-1) for key in fits[0]}


def _values(features: FeatureSet, problem: Problem) -> np.ndarray:
    """Values (rows, columns) on a problem's division; refused if they do not fit, or are not finite."""
    read, rows = features.on(problem.division), problem.rows
    if read.values.shape != (expected := (len(rows.model), len(read.names))):
        raise ValueError(f"Features '{features.name}' have shape {read.values.shape}, expected {expected}.")
    broken = ~np.isfinite(read.values) & ~diverged(rows)[:, None]
    if broken.any():
        row, column = np.argwhere(broken)[0]
        raise ValueError(
            f"Features '{features.name}' hold {int(broken.sum())} value(s) that are not finite, the first in "
            f"column '{read.names[column]}' at row {row}; recompute them, or mark the model as diverged."
        )
    return read.values


def _predicted(problem: Problem, design: Design, values: np.ndarray, boosted: bool) -> Fits:
    """Predictions (num_test) for values (num_test, columns) of the probes that suit the target and the features."""
    y = problem.y[problem.train]
    if problem.target.kind == "classification":
        return {("logistic", "accuracy"): design.logistic(y, values)}
    labels = np.stack([y, problem.residual[problem.train]], axis=1)
    fits = {"ridge": design.ridge(labels, values)}
    if boosted:
        fits["gradient_boosting"] = np.stack([design.boosting(label, values) for label in labels.T], axis=1)
    metrics = metrics_of(problem.division.split)
    return {(probe, metric): fit[:, column] for probe, fit in fits.items() for metric, column in metrics}


def _permuted(problem: Problem, design: Design, values: np.ndarray, seed: int) -> Fits:
    """Predictions (permutations, num_test) of ridge on labels permuted between models; classes by largest output."""
    fold = [] if problem.division.fold is None else [str(problem.division.fold)]
    generator = keyed(seed, "shuffled", *fold, problem.division.split, problem.target.name)
    found: dict[tuple[str, str], list[np.ndarray]] = {}
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
            guesses = {metric: fit[:, column] for metric, column in metrics_of(problem.division.split)}
        for metric, guess in guesses.items():
            found.setdefault(("ridge", metric), []).append(guess)
    return {key: np.stack(guesses) for key, guesses in found.items()}


def _scored_rows(question: Question, predictions: Sequence[Prediction], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of each prediction, then rows of the embeddings' differences from the baselines on the same resamples."""
    resamples = Resamples(question, NUM_RESAMPLES, seed)
    drawn = {(p.features.name, p.probe, p.metric): resamples.measure(p.metric, p.predicted) for p in predictions}
    learned_with = {p.features.name: p.features.learned_with for p in predictions}
    reasons = {
        (p.features.name, p.probe, p.metric): resamples.undefined(p.metric, p.predicted)
        for p in predictions
        if not np.isfinite(drawn[p.features.name, p.probe, p.metric][0])
    }
    for (name, probe, metric), draws in drawn.items():
        label, reason = (name, probe, learned_with[name]), reasons.get((name, probe, metric))
        yield _row(question, metric, label, draws, reason)
    learned = {p.features.name for p in predictions if p.features.learned}
    compared = [metric for metric, _ in metrics_of(question.split)[:2]]
    for (name, probe, metric), (baseline, other) in itertools.product(drawn, BASELINES):
        if name in learned and metric in compared and (baseline, other, metric) in drawn:
            label = (f"{name} - {baseline}", probe if probe == other else f"{probe} - {other}", learned_with[name])
            mine, theirs = drawn[name, probe, metric], drawn[baseline, other, metric]
            reason = reasons.get((name, probe, metric)) or reasons.get((baseline, other, metric))
            yield _row(question, metric, label, mine - theirs, reason)


def _shuffled_rows(
    question: Question, features: FeatureSet, permuted: Mapping[tuple[str, str], np.ndarray], seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of the control, each with the spread of its metric over permutations."""
    sample = Resamples(question, 0, seed)
    for (probe, metric), guesses in permuted.items():
        values = np.array([sample.measure(metric, guess)[0] for guess in guesses])
        # A permutation that leads to one prediction for all rows has no order, others have.
        known = values[np.isfinite(values)]
        draws = np.array([np.mean(known) if len(known) else np.nan, *values])
        label, reason = ("shuffled", probe, features.learned_with), sample.undefined(metric, guesses[0])
        yield _row(question, metric, label, draws, None if len(known) else reason) | {"of": features.name}


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
