"""Picture of an evaluation: the map of an embedding, and what it reads beside the strongest baselines."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.answer import METRICS, TITLES, is_difference, is_headline
from probes.feature_sets import BAR, Embedding
from probes.page.points import components, shown_rows
from probes.problem import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BESIDE = (BAR, "responses")
"""Baselines of the picture, by gradient boosting: the strongest reading of weights, and of answers to inputs."""
MOST_EMBEDDINGS = 3
Row = Mapping[str, Any]


def picture(rows: Sequence[Row], zoo_rows: Rows, embeddings: Sequence[Embedding]) -> bytes:
    """PNG of `drawn`, the same bytes for the same evaluation."""
    buffer = io.BytesIO()
    drawn(rows, zoo_rows, embeddings).savefig(buffer, dpi=110, format="png", metadata={"Software": None})
    return buffer.getvalue()


def drawn(rows: Sequence[Row], zoo_rows: Rows, embeddings: Sequence[Embedding]) -> Figure:
    """The map of the first embedding, coloured by the label that it reads best, and bars of values with intervals.

    Values are those of the first split with embeddings, in the headline metric; without embeddings, of baselines alone.
    """
    # The figure is made without pyplot, which would keep it and choose a screen.
    from matplotlib.figure import Figure

    shown = [row for row in rows if _is_shown(row)]
    of_embeddings = [row for row in shown if row["features"].startswith("embedding:")]
    split = (of_embeddings or shown or [{"split": "in_distribution"}])[0]["split"]
    shown = [row for row in shown if row["split"] == split]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if shown:
        _values(right, shown)
        right.set_title(f"read from frozen embeddings, {TITLES[split]}", fontsize=10)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    else:
        right.set_axis_off()
    if embeddings:
        read = {row["value"]: row["target"] for row in of_embeddings if row["features"] == embeddings[0].name}
        _map(left, zoo_rows, embeddings[0], read[max(read)] if read else None)
    else:
        left.set_axis_off()
    return figure


def _is_shown(row: Row) -> bool:
    """Whether a row has a value of one set of features in the headline metric of a number."""
    plain = not is_difference(row) and " + " not in row["features"] and row["value"] is not None
    return plain and is_headline(row) and row["metric"] != "accuracy"


def _map(axes: Axes, rows: Rows, embedding: Embedding, target: str | None) -> None:
    """Every snapshot on the first two principal components of an embedding."""
    shown = shown_rows(rows)
    (values, *_) = embedding.made_for.values()
    centred = values[shown.chosen] - values[shown.chosen].mean(axis=0)
    spread = centred.std(axis=0)
    points = components(centred / np.where(spread > 0, spread, 1.0))
    if target is None:
        axes.scatter(points[:, 0], points[:, 1], s=4)
    else:
        labels = rows.column(target)[shown.chosen].astype(float)
        kept = np.isfinite(labels)
        low, high = np.quantile(labels[kept], [0.02, 0.98])
        drawn = axes.scatter(points[kept, 0], points[kept, 1], c=labels[kept], s=4, vmin=low, vmax=high)
        axes.figure.colorbar(drawn, ax=axes, label=target)
    axes.set(title=f"{_plain(embedding.name)}: {len(points):,} snapshots", xlabel="component 1", ylabel="component 2")
    axes.set(xticks=[], yticks=[])


def _values(axes: Axes, rows: Sequence[Row]) -> None:
    """Values with 95% intervals, a group of bars for each target."""
    sides: dict[str, dict[str, Row]] = {}
    for row in rows:
        name, probe = row["features"], row["probe"]
        if name.startswith("embedding:") and "#" not in name and probe == "ridge":
            sides.setdefault(f"{_plain(name)}, ridge", {})[row["target"]] = row
        elif name in BESIDE and probe != "ridge":
            sides.setdefault(f"{name}, {probe.replace('_', ' ')}", {})[row["target"]] = row
    learned = [name for name in sides if name.endswith(", ridge")][:MOST_EMBEDDINGS]
    order = [*learned, *(name for name in sides if name not in learned and not name.endswith(", ridge"))]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    for i, name in enumerate(order):
        known = [(j, sides[name][target]) for j, target in enumerate(targets) if target in sides[name]]
        value = np.array([row["value"] for _, row in known])
        ends = [[row["value"] if row[end] is None else row[end] for _, row in known] for end in ("low", "high")]
        x = np.array([j for j, _ in known]) + (i - (len(order) - 1) / 2) * 0.8 / max(len(order), 1)
        errors = {"yerr": np.abs(np.array(ends) - value), "error_kw": {"linewidth": 0.8}}
        axes.bar(x, value, 0.7 / len(order), label=name, **errors)
    axes.set_xticks(range(len(targets)), [name.replace("_", " ") for name in targets], fontsize=8)
    axes.set_ylabel(METRICS[rows[0]["metric"]] if rows else "")
    axes.axhline(0, color="grey", linewidth=0.8)


def _plain(name: str) -> str:
    return name.removeprefix("embedding:")
