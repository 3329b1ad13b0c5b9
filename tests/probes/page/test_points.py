"""Data behind the interactive figures: models, neighbours, components, predictions."""

import json
import time

import numpy as np
import pytest
import scipy.spatial.distance
from sklearn.decomposition import PCA

from probes.feature_sets import Embedding
from probes.page.points import NUM_NEIGHBOURS, components, data_of, neighbours, rounded, shown_rows
from probes.problem import read_rows
from probes.targets import named_target
from tests.probes.test_probe_targets import make_table


def test_neighbours_are_the_nearest_rows_of_other_models():
    generator = np.random.default_rng(0)
    values, model = generator.normal(size=(60, 5)), np.repeat(np.arange(20), 3)
    found = neighbours(values, model)
    apart = scipy.spatial.distance.cdist(values, values)
    apart[model[:, None] == model] = np.inf
    assert found.tolist() == np.argsort(apart, axis=1)[:, :NUM_NEIGHBOURS].tolist()


def test_where_there_are_too_few_other_models_there_are_fewer_neighbours():
    found = neighbours(np.arange(4.0)[:, None], np.array([0, 0, 0, 1]))
    assert found.tolist() == [[3, -1, -1, -1, -1]] * 3 + [[2, 1, 0, -1, -1]]


def test_components_are_those_of_principal_component_analysis_and_zero_where_there_are_none():
    values = np.random.default_rng(0).normal(size=(50, 6)) @ np.diag([5, 3, 1, 1, 1, 1])
    centred = values - values.mean(axis=0)
    expected = PCA(2).fit_transform(values)
    assert np.abs(components(centred)) == pytest.approx(np.abs(expected), abs=1e-9)
    assert components(centred[:, :1])[:, 1].tolist() == [0.0] * 50


def test_numbers_keep_four_digits_and_those_that_are_not_finite_are_null():
    assert rounded(np.array([1.23456, -0.000123456, np.nan, np.inf])) == [1.235, -0.0001235, None, None]


def test_each_model_is_there_once_and_diverged_rows_are_not():
    status = ["diverged" if row == 3 else "ok" for row in range(80)]
    table = make_table(models=40, label=np.where(np.arange(80) == 5, np.nan, np.arange(80.0)), status=status)
    values = np.random.default_rng(0).normal(size=(80, 3))
    one = Embedding(name="embedding:a", made_for={("in_distribution", None): values})
    rows = read_rows(table)
    data = data_of(shown_rows(rows), [one], [named_target(table, "label")], [])
    json.dumps(data, allow_nan=False)
    assert sorted(data["models"]) == sorted(set(table.column("model_id").to_pylist()))
    assert len(data["model"]) == 79
    columns = {column["name"]: column for column in data["columns"]}
    kept = [row for row in range(80) if row != 3]
    assert [data["models"][code] for code in data["model"]] == [table.column("model_id")[row].as_py() for row in kept]
    assert columns["label"]["numbers"] == [None if row == 5 else float(row) for row in kept]
    for name in ("family", "task", "hidden_size", "step"):
        read = [columns[name]["values"][code] for code in columns[name]["codes"]]
        assert read == [str(table.column(name)[row].as_py()) for row in kept]


def test_a_zoo_above_the_maximum_is_drawn_at_random_in_its_order():
    shown = shown_rows(read_rows(make_table(models=60)), most=50)
    assert len(set(shown.chosen)) == 50
    assert (np.diff(shown.chosen) > 0).all()
    assert shown.position[shown.chosen].tolist() == list(range(50))
    assert (shown.position >= 0).sum() == 50


@pytest.mark.slow
def test_twenty_thousand_models_fit_in_a_few_megabytes():
    table = make_table(models=20_000, steps=(0,), a=np.random.default_rng(0).normal(size=20_000))
    values = np.random.default_rng(1).normal(size=(20_000, 64))
    made = [Embedding(name=f"embedding:{i}", made_for={("in_distribution", None): values}) for i in range(2)]
    start = time.process_time()
    data = data_of(shown_rows(read_rows(table)), made, [named_target(table, "a")], [])
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    print(f"{len(text) / 1e6:.2f} MB, {time.process_time() - start:.1f} CPU seconds")
    assert len(data["models"]) == 20_000
    assert len(text) < 4e6
