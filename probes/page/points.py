"""Data behind the interactive figures: each model once, columns by row, maps with neighbours, predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from probes.feature_sets import BAR, Embedding, FeatureSet
from probes.fitting import Prediction
from probes.problem import Question, Rows, diverged
from probes.targets import Target
from weightspace.store import split_title

MAX_ROWS = 20_000
MAX_MAPS = 8
MAX_JUDGED = 3000
NUM_NEIGHBOURS = 5
# Places on a map are whole numbers up to this, finer than a screen.
GRID = 1000
DESCRIBED = ("family", "task", "hidden_size", "step", "split")


@dataclass(frozen=True)
class Shown:
    """The rows of a zoo that figures show: those of models that have not diverged, drawn at random above a maximum."""

    rows: Rows
    chosen: np.ndarray
    position: np.ndarray
    """Position among the chosen of each row (rows), -1 where it is not shown."""


def shown_rows(rows: Rows, most: int = MAX_ROWS) -> Shown:
    """Choose the rows to show, in the zoo's order."""
    usable = np.flatnonzero(~diverged(rows))
    if len(usable) > most:
        usable = np.sort(np.random.default_rng(0).permutation(usable)[:most])
    position = np.full(len(rows.model), -1)
    position[usable] = np.arange(len(usable))
    return Shown(rows, usable, position)


def rounded(values: np.ndarray, digits: int = 4) -> list[float | None]:
    """Numbers with few significant digits, None where one is not finite: JSON has no NaN."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


def data_of(
    shown: Shown, feature_sets: Sequence[FeatureSet], targets: Sequence[Target], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    """All that the figures show, as JSON: models, columns of the rows, maps of embeddings, predictions."""
    names, model = np.unique(shown.rows.column("model_id")[shown.chosen].astype(str), return_inverse=True)
    embeddings = [f for f in feature_sets if isinstance(f, Embedding) and "#" not in f.name]
    return {
        "models": names.tolist(),
        "model": model.tolist(),
        "columns": [_column(shown, name) for name in _columns(shown.rows, targets)],
        "maps": [_map(shown, features) for features in embeddings[:MAX_MAPS]],
        "questions": list(_questions(shown, predictions)),
    }


def _columns(rows: Rows, targets: Sequence[Target]) -> list[str]:
    """Names of the columns to show: first the zoo of a row, where there are two."""
    zoo = ["zoo"] if "zoo" in rows.table.column_names else []
    return list(dict.fromkeys([*zoo, *DESCRIBED, *(target.name for target in targets)]))


def _column(shown: Shown, name: str) -> dict[str, Any]:
    """A column of the shown rows: codes of its values where they are names or few numbers, else numbers."""
    values = shown.rows.column(name)[shown.chosen]
    numeric = all(value is None or isinstance(value, int | float) for value in values)
    if numeric and name not in ("hidden_size", "step"):
        return {"name": name, "numbers": rounded(values.astype(float))}
    known = sorted({value for value in values if value is not None})
    codes = {value: code for code, value in enumerate(known)}
    coded = [codes.get(value, -1) for value in values]
    return {"name": name, "values": [str(value) for value in known], "codes": coded}


def _map(shown: Shown, features: Embedding) -> dict[str, Any]:
    """An embedding on its first two principal components, with the nearest rows of other models in all dimensions."""
    (key, values), *_ = features.made_for.items()
    values = values[shown.chosen]
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    scaled = centred / np.where(spread > 0, spread, 1.0)
    points = components(scaled)
    ends = np.stack([points.min(axis=0), np.maximum(np.ptp(points, axis=0), np.finfo(float).tiny)])
    x, y = np.rint((points - ends[0]) / ends[1] * GRID).astype(int).T
    return {
        "name": features.name,
        "of": split_title(*key),
        "x": x.tolist(),
        "y": y.tolist(),
        "neighbours": neighbours(scaled, shown.rows.model[shown.chosen]).tolist(),
    }


def components(scaled: np.ndarray) -> np.ndarray:
    """The first two principal components (rows, 2) of centred values (rows, columns); 0 where there are fewer."""
    # Of the two Gram matrices that of the columns is small, however many rows there are.
    _, directions = np.linalg.eigh(scaled.T @ scaled)
    first = directions[:, ::-1][:, :2]
    points = np.zeros((len(scaled), 2))
    points[:, : first.shape[1]] = scaled @ first
    return points


def neighbours(scaled: np.ndarray, model: np.ndarray, count: int = NUM_NEIGHBOURS) -> np.ndarray:
    """Positions (rows, count) of the nearest rows of other models by Euclidean distance, -1 where there are too few.

    scaled (rows, columns) holds standardised embeddings, model (rows) the model of each row.
    """
    most = int(np.bincount(np.unique(model, return_inverse=True)[1]).max())
    asked = min(count + most, len(scaled))
    search = NearestNeighbors(n_neighbors=asked, algorithm="brute").fit(scaled)
    near = search.kneighbors(scaled, return_distance=False)
    other = model[near] != model[:, None]
    # Rows of other models first, in the order of their distance.
    order = np.argsort(~other, axis=1, kind="stable")[:, :count]
    nearest = np.where(np.take_along_axis(other, order, 1), np.take_along_axis(near, order, 1), -1)
    return np.pad(nearest, ((0, 0), (0, count - nearest.shape[1])), constant_values=-1)


def is_shown(prediction: Prediction) -> bool:
    """Whether a prediction has a panel: every embedding's, and that of `statistics+spectra` by gradient boosting."""
    features = prediction.features
    bar = features.name == BAR and prediction.probe != "ridge"
    first_seed = isinstance(features, Embedding) and "#" not in features.name
    return (first_seed or bar) and (prediction.metric != "kendall_tau" or prediction.question.within_cells)


def _questions(shown: Shown, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predicted and true numbers of the shown test rows, for each target, split and metric."""
    panels: dict[tuple[int, str], list[Prediction]] = {}
    for prediction in predictions:
        if prediction.question.target.kind == "regression" and is_shown(prediction):
            panels.setdefault((id(prediction.question), prediction.metric), []).append(prediction)
    return [_asked(shown, same[0].question, metric, same) for (_, metric), same in panels.items()]


def _asked(shown: Shown, question: Question, metric: str, predictions: Sequence[Prediction]) -> dict[str, Any]:
    judged = shown.position[question.test] >= 0
    if metric == "r2_within_cell":
        judged &= question.seen
    test = np.flatnonzero(judged)
    if len(test) > MAX_JUDGED:
        test = np.sort(np.random.default_rng(0).permutation(test)[:MAX_JUDGED])
    panels = [
        {
            "features": prediction.features.name,
            "probe": prediction.probe.replace("_", " "),
            "predicted": rounded(prediction.predicted[test]),
        }
        for prediction in predictions
    ]
    return {
        "target": question.target.name,
        "split": question.split,
        "metric": metric,
        "rows": shown.position[question.test[test]].tolist(),
        "true": rounded(question.truth(metric)[test]),
        "panels": panels,
    }
