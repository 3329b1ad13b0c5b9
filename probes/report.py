"""From a zoo and files of embeddings to probes.json and one self-contained report.html."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import platform
import re
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probes.probe import Evaluation, FeatureSet, Prediction, evaluate
from probes.targets import Problem, Rows, Target, default_targets, diverged, named_target, read_rows
from weightspace import features
from weightspace.store import Zoo, open_zoo, write_durably

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+=,@:()/#-]{0,99}")
LIBRARIES = ("numpy", "scipy", "scikit-learn", "pyarrow")
MAX_POINTS = 3000
# Okabe and Ito's palette, which stays apart under colour blindness; further classes repeat it with other markers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#B8A800")
PANELS = ("statistics", "gradient_boosting")


def run(
    zoo: Path | str, embeddings: Sequence[Path | str], out: Path | str, targets: Sequence[str] = (), seed: int = 0
) -> list[dict[str, Any]]:
    """Probe embeddings of a zoo beside its baselines; writes probes.json and report.html in `out`, returns the rows."""
    opened = open_zoo(zoo)
    learned = read_embeddings(embeddings, opened.fingerprint, opened.num_rows)
    Path(out).mkdir(parents=True, exist_ok=True)
    chosen = choose_targets(opened, targets)
    feature_sets = [*learned, *baselines(opened)]
    evaluation = evaluate(opened.table, feature_sets, chosen, seed)
    document = {
        "rows": evaluation.rows,
        "zoo": opened.fingerprint,
        "targets": [_described(target) for target in chosen],
        "excluded": evaluation.excluded,
        "seed": seed,
        "created_with": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
    }
    title = f"Probes of {Path(zoo).resolve().name}"
    page = render(evaluation, read_rows(opened.table), feature_sets, chosen, title, opened.fingerprint)
    write_durably(Path(out) / "report.html", page.encode())
    text = json.dumps(document, sort_keys=True, allow_nan=False, indent=1)
    write_durably(Path(out) / "probes.json", text.encode())
    return evaluation.rows


def choose_targets(zoo: Zoo, names: Sequence[str]) -> list[Target]:
    """Targets by name, or those that suit the zoo if none is named."""
    if names:
        return [named_target(zoo.table, name) for name in dict.fromkeys(names)]
    return default_targets(zoo.table, sorted(zoo.manifest.get("labels", {})))


def baselines(zoo: Zoo) -> list[FeatureSet]:
    """What every embedding stands beside: statistics and spectra of the weights, and the record of each model."""
    found = {"statistics": features.statistics(zoo), "spectra": features.spectra(zoo)}
    found["metadata"] = features.metadata(zoo.table)
    return [FeatureSet(name=k, values=f.values, names=f.names, kind="baseline") for k, f in found.items()]


def read_embeddings(paths: Sequence[Path | str], zoo: str, num_rows: int) -> list[FeatureSet]:
    """Read files of embeddings (rows, embedding_dim) of the zoo with this fingerprint; names must differ."""
    found: dict[str, Path] = {}
    read = []
    for path in map(Path, paths):
        one = _read_embedding(path, zoo, num_rows)
        if one.name in found:
            raise ValueError(f"{found[one.name]} and {path} are both named '{one.name}'; embed one under another name.")
        found[one.name] = path
        read.append(one)
    return read


def _read_embedding(path: Path, zoo: str, num_rows: int) -> FeatureSet:
    import safetensors

    if not path.is_file():
        raise ValueError(f"There is no file {path}; `weightspace embed` writes one.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["weightspace"])
            values = file.get_tensor("embedding").double().numpy()
            found, learned_with = record["zoo"], record["learned_with"]
            name = str(record.get("name") or path.stem)
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a file of `weightspace embed`: {error}.") from None
    if found != zoo:
        raise ValueError(
            f"{path} embeds the zoo {str(found)[:12]}, but this zoo is {zoo[:12]}; run `weightspace embed` on this zoo."
        )
    if values.ndim != 2 or len(values) != num_rows or not values.size:
        raise ValueError(f"{path} holds embeddings {values.shape}, but the zoo has {num_rows} rows; embed it again.")
    if learned_with not in ("labels", "no_labels", None) or not NAME.fullmatch(name):
        raise ValueError(f"{path} says learned_with {learned_with!r} and name {name!r}, which are not understood.")
    names = [f"embedding[{i}]" for i in range(values.shape[1])]
    return FeatureSet(name=f"embedding:{name}", values=values, names=names, kind="embedding", learned_with=learned_with)


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
        names=["shuffled", *(one.name for one in feature_sets)],
        figures=list(_figures(evaluation.predictions)),
        maps=[{"name": one.name, "png": _map(one, rows, targets)} for one in feature_sets if one.kind == "embedding"],
    )


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


def _map(embedding: FeatureSet, rows: Rows, targets: Sequence[Target]) -> str:
    """A PNG of the first two principal components of an embedding, a panel for each way of colouring models."""
    usable = np.flatnonzero(~diverged(rows))
    shown = np.random.default_rng(0).permutation(usable)[:MAX_POINTS]
    centred = embedding.values[shown] - embedding.values[shown].mean(axis=0)
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
    """For each problem, a PNG of what was predicted against what is true, with words for who cannot see it."""
    problems: dict[int, Problem] = {id(prediction.problem): prediction.problem for prediction in predictions}
    for problem in problems.values():
        own = [p for p in predictions if p.problem is problem and _shown(p)]
        if not own:
            continue
        figure, panels = _axes(len(own), max(1, len({p.features.name for p in own})))
        draw = _confusion if problem.target.kind == "classification" else _scatter
        for axes, prediction in zip(panels, sorted(own, key=lambda p: p.metric, reverse=True), strict=True):
            draw(axes, prediction)
        alt = f"{problem.target.name}: predicted against true on {len(problem.test)} test rows, "
        alt += f"one panel for each of {', '.join(dict.fromkeys(p.features.name for p in own))}."
        yield {"target": problem.target.name, "split": problem.split, "png": _png(figure), "alt": alt}


def _shown(prediction: Prediction) -> bool:
    """Whether a prediction has a panel: every embedding, and the strongest baseline."""
    ours = prediction.features.kind == "embedding" or prediction.features.name == PANELS[0]
    strongest = prediction.probe in (PANELS[1], "logistic") or prediction.features.kind == "embedding"
    return ours and strongest and prediction.metric != "kendall_tau"


def _scatter(axes: Axes, prediction: Prediction) -> None:
    """Predicted against true numbers of the test rows, with the diagonal."""
    within = prediction.metric == "r2_within_cell"
    problem = prediction.problem
    judged = problem.seen[problem.test] if within else np.ones(len(problem.test), dtype=bool)
    true, predicted = problem.truth(prediction.metric)[judged], prediction.predicted[judged]
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
    true = prediction.problem.truth(prediction.metric)
    names = sorted({*true, *prediction.predicted})
    counts = np.array([[np.sum((true == a) & (prediction.predicted == b)) for b in names] for a in names])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color="w" if share > 0.5 else "k")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title(f"{prediction.features.name}\n{prediction.probe}, share of each true class", fontsize=8)
