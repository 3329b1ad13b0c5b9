"""The picture of an evaluation shows the numbers of its rows."""

import numpy as np
import pytest

from probes.feature_sets import Embedding
from probes.page.points import shown_rows
from probes.picture import drawn, picture
from probes.problem import read_rows
from tests.weightspace.zoos import write_zoo
from weightspace.store import open_zoo


@pytest.fixture(scope="module")
def zoo_rows(tmp_path_factory):
    return read_rows(open_zoo(write_zoo(tmp_path_factory.mktemp("zoo") / "zoo", models=20, rollouts=False)).table)


def row(features, target, value, probe="ridge", split="in_distribution", metric="r2_within_cell", **more):
    ends = {"low": value - 0.1, "high": value + 0.2}
    said = {"features": features, "probe": probe, "target": target, "value": value, "split": split, "metric": metric}
    return said | ends | more


def embedding(zoo_rows, name="embedding:first"):
    values = np.random.default_rng(0).normal(size=(len(zoo_rows.model), 4))
    return Embedding(name=name, learned_with="labels", made_for={("in_distribution", None): values})


ROWS = [
    row("embedding:first", "score", 0.3),
    row("embedding:first", "decay", 0.6),
    row("embedding:first", "family", 0.9, metric="accuracy"),
    row("embedding:first + statistics+spectra", "decay", 0.8),
    row("embedding:first - statistics+spectra", "decay", 0.1, strongest=True),
    row("statistics+spectra", "decay", 0.5, probe="gradient_boosting"),
    row("statistics+spectra", "decay", 0.45),
    row("embedding:first", "decay", 0.2, split="new_task"),
]


def test_bars_are_the_values_and_intervals_of_rows_on_one_split(zoo_rows):
    _, axes, *_ = drawn(ROWS, zoo_rows, [embedding(zoo_rows)]).axes
    drawn_bars = [container for container in axes.containers if hasattr(container, "patches")]
    bars = {container.get_label(): [bar.get_height() for bar in container] for container in drawn_bars}
    assert bars == {"first, ridge": [0.3, 0.6], "statistics+spectra, gradient boosting": [0.5]}
    assert [text.get_text() for text in axes.get_xticklabels()] == ["score", "decay"]


def test_the_map_is_coloured_by_the_label_that_is_read_best(zoo_rows):
    figure = drawn(ROWS, zoo_rows, [embedding(zoo_rows)])
    coloured = figure.axes[0].collections[0].get_array()
    labels = zoo_rows.column("decay")[shown_rows(zoo_rows).chosen].astype(float)
    assert sorted(np.asarray(coloured)) == sorted(labels[np.isfinite(labels)])


def test_without_embeddings_baselines_stand_alone_and_bytes_repeat(zoo_rows):
    alone = [row("statistics+spectra", "decay", 0.5, probe="gradient_boosting")]
    assert picture(alone, zoo_rows, []) == picture(alone, zoo_rows, [])
    assert picture([], zoo_rows, [])[:4] == b"\x89PNG"
