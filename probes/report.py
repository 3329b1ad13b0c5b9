"""From a zoo and files of embeddings to probes.json and one self-contained report.html."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probes.evaluation import Evaluation, divided, evaluate, ordered
from probes.feature_sets import BAR, Beside, Embedding, FeatureSet, baselines, read_embeddings
from probes.fitting import Prediction, metrics_of
from probes.problem import Question, Rows, diverged, read_rows
from probes.targets import Target, default_targets, named_target
from weightspace.components.discovery import refuse_unknown_name
from weightspace.store import SPLITS, Division, Zoo, open_zoo, split_title, write_durably

LIBRARIES = ("numpy", "scipy", "scikit-learn", "pyarrow")
MAX_POINTS = 3000
# Okabe and Ito's palette, which stays apart under colour blindness; further classes repeat it with other markers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#B8A800")


def run(
    zoo: Path | str,
    embeddings: Sequence[Path | str],
    out: Path | str,
    targets: Sequence[str] = (),
    seed: int = 0,
    splits: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Probe embeddings of a zoo beside its baselines; writes probes.json and report.html in `out`, returns the rows.

    Without `splits`, on all that the zoo has rows for. An embedding has rows on the splits that its encoder was trained
    for; files of one name are taken together, so that each split, and each fold, may have an encoder of its own.
    """
    opened = open_zoo(zoo)
    learned = read_embeddings(embeddings, opened)
    refuse_wrong_splits(splits)
    _refuse_unused(learned, divided(opened.table, splits))
    Path(out).mkdir(parents=True, exist_ok=True)
    feature_sets = [*learned, *baselines(opened)]
    chosen = ordered(choose_targets(opened, targets), feature_sets)
    evaluation = evaluate(opened.table, feature_sets, chosen, seed, splits)
    document = {
        "rows": evaluation.rows,
        "zoo": opened.fingerprint,
        "targets": [_described(target) for target in chosen],
        "excluded": evaluation.excluded,
        "splits": evaluation.splits,
        "seed": seed,
        "created_with": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
    }
    title = f"Probes of {Path(zoo).resolve().name}"
    page = render(evaluation, read_rows(opened.table), feature_sets, chosen, title, opened.fingerprint)
    write(Path(out), "probes.json", document, page)
    return evaluation.rows


def write(out: Path, name: str, document: Mapping[str, Any], page: str) -> None:
    """Write report.html, and the document as JSON of this name, in the folder `out`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_durably(out / "report.html", page.encode())
    write_durably(out / name, json.dumps(document, sort_keys=True, allow_nan=False, indent=1).encode())


def refuse_wrong_splits(splits: Sequence[str]) -> None:
    """Raise ValueError for the name of a split that does not exist, or that is given twice."""
    for split in splits:
        refuse_unknown_name("split", split, SPLITS)
    if len(set(splits)) < len(splits):
        raise ValueError(f"`splits` (={list(splits)}) must name each split once.")


def _refuse_unused(learned: Sequence[Embedding], parts: Mapping[str, list[Division] | str]) -> None:
    """Raise ValueError where an embedding would have no row on any split, rather than be silent about it."""
    known = {split: divisions for split, divisions in parts.items() if not isinstance(divisions, str)}
    for embedding in learned:
        reasons = [embedding.unavailable(divisions) for divisions in known.values()]
        if all(reasons):
            raise ValueError(
                f"'{embedding.name}' can be judged on none of {', '.join(known)}, for its encoders may have seen what "
                f"is held out: {'; '.join(map(str, reasons))}. Give the embeddings of every fold, or name other splits."
            )


def choose_targets(zoo: Zoo, names: Sequence[str]) -> list[Target]:
    """Targets by name, or those that suit the zoo if none is named."""
    if names:
        return [named_target(zoo.table, name) for name in dict.fromkeys(names)]
    return default_targets(zoo.table, sorted(zoo.manifest.get("labels", {})))


def _described(target: Target) -> dict[str, Any]:
    """A target as JSON, its open bounds as null."""
    fields = dataclasses.asdict(target).items()
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields}


def render(
    evaluation: Evaluation,
    rows: Rows,
    feature_sets: Sequence[FeatureSet],
    targets: Sequence[Target],
    title: str,
    zoo: str,
) -> str:
    """One HTML page of an evaluation that needs nothing else: figures are inline, nothing is fetched."""
    template = resources.files("probes").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        title=title,
        zoo=zoo,
        num_rows=len(rows.model),
        num_models=len(np.unique(rows.model)),
        targets=targets,
        rows=evaluation.rows,
        excluded=evaluation.excluded,
        held_out=evaluation.splits,
        headlines={split: metrics_of(split)[0][0] for split in SPLITS},
        names=["shuffled", *dict.fromkeys([*(p.features.name for p in evaluation.predictions), *_failed(evaluation)])],
        added=sorted({p.features.name for p in evaluation.predictions if isinstance(p.features, Beside)}),
        figures=list(_figures(evaluation.predictions)),
        maps=[
            {"name": features.name, "of": split_title(*key), "png": _map(values, rows, targets)}
            for features in feature_sets
            if isinstance(features, Embedding)
            for key, values in itertools.islice(features.made_for.items(), 1)
        ],
    )


def _failed(evaluation: Evaluation) -> list[str]:
    """Names of the features that there are not, as training failed."""
    return [row["features"] for row in evaluation.rows if row["num_test"] == 0]


def _png(figure: Figure) -> str:
    """A figure as the base64 text of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def _axes(panels: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with this many square panels, in rows of at most `columns`."""
    columns = min(panels, columns)
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(3.3 * columns, 3.1 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid:
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[panels:]:
        axes.set_visible(False)
    return figure, list(grid[:panels])


def _map(embedding: np.ndarray, rows: Rows, targets: Sequence[Target]) -> str:
    """A PNG of the first two principal components of embeddings (rows, embedding_dim), coloured in several ways."""
    usable = np.flatnonzero(~diverged(rows))
    shown = np.random.default_rng(0).permutation(usable)[:MAX_POINTS]
    centred = embedding[shown] - embedding[shown].mean(axis=0)
    spread = centred.std(axis=0)
    centred = centred / np.where(spread > 0, spread, 1.0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(shown), 2))
    points[:, : min(2, len(directions))] = centred @ directions[:2].T
    names = dict.fromkeys(["family", "task", *(target.name for target in targets)])
    chosen = [next((t for t in targets if t.name == name), named_target(rows.table, name)) for name in names]
    figure, panels = _axes(len(chosen), 3)
    for axes, target in zip(panels, chosen, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.set_title(target.name, fontsize=9)
        axes.set_xlabel("component 1", fontsize=8)
        axes.set_ylabel("component 2", fontsize=8)
        labels = rows.column(target.name)[shown]
        (_colour_classes if target.kind == "classification" else _colour_numbers)(axes, points, labels, target)
    return _png(figure)


def _colour_classes(axes: Axes, points: np.ndarray, labels: np.ndarray, target: Target) -> None:
    """Scatter points (rows, 2) by class (rows)."""
    for number, name in enumerate(sorted({str(label) for label in labels})):
        mine, marker = points[labels == name], "o^sD"[number // len(COLOURS) % 4]
        colour = COLOURS[number % len(COLOURS)]
        axes.scatter(mine[:, 0], mine[:, 1], s=5, linewidths=0, alpha=0.7, color=colour, marker=marker, label=name)
    axes.legend(fontsize=7, markerscale=2, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2)


def _colour_numbers(axes: Axes, points: np.ndarray, labels: np.ndarray, target: Target) -> None:
    """Scatter points (rows, 2) by label (rows), grey where there is none."""
    numbers = labels.astype(float)
    known = np.isfinite(numbers)
    axes.scatter(points[~known, 0], points[~known, 1], s=4, linewidths=0, color="#d5d9df")
    if known.any():
        # A few outliers would otherwise leave one colour for all others.
        low, high = np.percentile(np.clip(numbers[known], target.low, target.high), (2, 98))
        x, y = points[known].T
        drawn = axes.scatter(x, y, s=5, linewidths=0, c=numbers[known], cmap="viridis", vmin=low, vmax=high)
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        figure.colorbar(drawn, ax=axes, shrink=0.8, extend="both").ax.tick_params(labelsize=7)


def _figures(predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    """For each question, a PNG of predicted against true labels, with words for readers who cannot see it."""
    questions: dict[int, Question] = {id(prediction.question): prediction.question for prediction in predictions}
    for question in questions.values():
        shown = [p for p in predictions if p.question is question and _shown(p)]
        if not shown:
            continue
        figure, panels = _axes(len(shown), max(1, len({p.features.name for p in shown})))
        draw = _confusion if question.target.kind == "classification" else _scatter
        for axes, prediction in zip(panels, sorted(shown, key=lambda p: p.metric, reverse=True), strict=True):
            draw(axes, prediction)
        alt = f"{question.target.name}: predicted against true on {len(question.test)} test rows, "
        alt += f"one panel for each of {', '.join(dict.fromkeys(p.features.name for p in shown))}."
        yield {"target": question.target.name, "split": question.split, "png": _png(figure), "alt": alt}


def _shown(prediction: Prediction) -> bool:
    """Whether a prediction has a panel: every embedding, and `statistics+spectra` by gradient boosting."""
    bar = prediction.features.name == BAR and prediction.probe != "ridge"
    return (isinstance(prediction.features, Embedding) or bar) and prediction.metric != "kendall_tau"


def _scatter(axes: Axes, prediction: Prediction) -> None:
    """Predicted against true numbers of the test rows, with the diagonal."""
    within = prediction.metric == "r2_within_cell"
    question = prediction.question
    judged = question.seen if within else np.ones(len(question.test), dtype=bool)
    true, predicted = question.truth(prediction.metric)[judged], prediction.predicted[judged]
    axes.scatter(true, predicted, s=6, linewidths=0, alpha=0.5, color=COLOURS[0])
    if len(true):
        ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
        axes.plot(ends, ends, color="#8a93a0", linewidth=0.8, zorder=0)
    kind = "minus cell mean" if within else "as it is"
    axes.set_title(f"{prediction.features.name}\n{prediction.probe.replace('_', ' ')}, {kind}", fontsize=8)
    axes.set_xlabel("true", fontsize=8)
    axes.set_ylabel("predicted", fontsize=8)


def _confusion(axes: Axes, prediction: Prediction) -> None:
    """Shares of each true class (rows) given to each class (columns)."""
    true = prediction.question.truth(prediction.metric)
    names = sorted({*true, *prediction.predicted})
    counts = np.array([[np.sum((true == a) & (prediction.predicted == b)) for b in names] for a in names])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color="w" if share > 0.5 else "k")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title(f"{prediction.features.name}\n{prediction.probe}, share of each true class", fontsize=8)
