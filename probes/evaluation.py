"""Every target on every split from every feature set: rows with paired intervals, beside a shuffled control."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from threadpoolctl import threadpool_limits

from probes.feature_sets import Embedding, FeatureSet, beside
from probes.fitting import Prediction, fit
from probes.problem import NotEnoughError, Problem, Question, Rows, pose, read_rows, unposed
from probes.scoring import scored_rows, shuffled_rows
from probes.targets import Target
from weightspace.store import SPLITS, Division, NothingHeldOutError, divisions

logger = logging.getLogger(__name__)


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
    parts: dict[str, list[Division] | str] = {}
    for split in splits or SPLITS:
        try:
            parts[split] = divisions(zoo_table, split)
        except NothingHeldOutError as reason:
            if splits:
                raise
            parts[split] = str(reason)
    return parts


def evaluate(
    zoo_table: pa.Table,
    feature_sets: Sequence[FeatureSet],
    targets: Sequence[Target],
    seed: int = 0,
    splits: Sequence[str] = (),
) -> Evaluation:
    """Probe every target from every feature set on these splits, or on all that the zoo has rows for if none is named.

    Each embedding is probed alone and beside `statistics+spectra`. The shuffled control is on the first embedding that
    a split has, else on `statistics`.
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
                _evaluate_split(evaluation, rows, parts, feature_sets, ordered(targets, feature_sets), seed)
    if not evaluation.rows:
        raise ValueError(f"No target can be probed: {unposed(evaluation.excluded)}")
    return evaluation


def left_out(zoo_table: pa.Table, targets: Sequence[Target]) -> Evaluation:
    """The evaluation of a zoo in which no target can be probed: no rows, and what was left out of each and why."""
    rows, evaluation = read_rows(zoo_table), Evaluation()
    for split, parts in divided(zoo_table).items():
        if isinstance(parts, str):
            evaluation.splits[split] = {"skipped": parts}
        else:
            _questions(rows, targets, parts, evaluation.excluded.setdefault(split, {}))
            evaluation.splits[split] = _held_out(parts) | {"unavailable": {}}
    return evaluation


def _held_out(parts: Sequence[Division]) -> dict[str, Any]:
    return {"description": SPLITS[parts[0].split].description, "folds": [part.fold for part in parts]}


def ordered(targets: Sequence[Target], feature_sets: Sequence[FeatureSet]) -> list[Target]:
    """Targets, last those whose ingredients an embedding was trained on."""
    adjacent = {name for f in feature_sets if isinstance(f, Embedding) for name in f.label_adjacent}
    return sorted(targets, key=lambda target: target.name in adjacent)


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
    usable = beside([features for features in feature_sets if features.name not in unavailable])
    evaluation.splits[split] = _held_out(parts) | {"unavailable": unavailable}
    questions = _questions(rows, targets, parts, evaluation.excluded.setdefault(split, {}))
    control = min(usable, key=lambda features: (not features.learned, features.name != "statistics"), default=None)
    shuffled: list[dict[str, Any]] = []
    for features in usable:
        logger.info("Probing %s from %s.", split, features.name)
        fitted = fit(features, questions, seed, with_control=features is control)
        evaluation.predictions.extend(fitted.predictions)
        shuffled += shuffled_rows(fitted.permuted, seed)
    for question in questions:
        asked = [prediction for prediction in evaluation.predictions if prediction.question is question]
        evaluation.rows.extend(scored_rows(question, asked, seed))
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
