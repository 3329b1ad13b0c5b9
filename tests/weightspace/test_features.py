"""Baseline features against numpy and known spectra."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from probes.feature_sets import baselines
from tests.weightspace.zoos import FAMILIES, write_zoo
from weightspace.families.elman import Elman
from weightspace.families.lru import LRU
from weightspace.features import columns_of, metadata, spectra, spectra_of, statistics, statistics_of
from weightspace.spec import GroupElement
from weightspace.store import open_zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return open_zoo(write_zoo(tmp_path_factory.mktemp("features") / "zoo", models=6, rollouts=False))


def column(features, name):
    return features.values[:, features.names.index(name)]


def test_statistics_equal_numpy_row_by_row(zoo):
    features = statistics(zoo)
    for stack in zoo.stacks():
        for position, row in enumerate(stack.rows.tolist()):
            for name, tensor in stack.params.items():
                one = tensor[position].double().numpy()
                gates = stack.family.spec.row_names(name)
                parts = zip(gates, one, strict=True) if stack.family.spec.channel_axis(name) else [("", one)]
                for gate, part in parts:
                    label = f"{name}.{gate}" if gate else name
                    expected = [part.mean(), part.var(), *np.quantile(part, [0, 0.25, 0.5, 0.75, 1])]
                    found = [
                        column(features, f"{label}.{what}")[row]
                        for what in ("mean", "variance", "q0", "q25", "q50", "q75", "q100")
                    ]
                    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_eigenvalues_of_a_known_matrix_come_sorted_by_magnitude():
    family = Elman(input_size=1, hidden_size=3, output_size=1)
    params = {name: torch.zeros(1, *family.spec.shape(name)) for name in family.spec.tensors}
    # A rotation by 30 degrees scaled by 0.8, and a real eigenvalue 0.5.
    c, s = 0.8 * np.cos(np.pi / 6), 0.8 * np.sin(np.pi / 6)
    params["weight_hh.0"][0] = torch.tensor([[0.5, 0, 0], [0, c, -s], [0, s, c]])
    columns = {name: float(value[0]) for name, value in spectra_of(family.spec, params).items()}
    for i, (real, imaginary) in enumerate([(c, s), (c, s), (0.5, 0.0)]):
        assert columns[f"weight_hh.0.eigenvalue.{i}.real"] == pytest.approx(real, abs=1e-6)
        assert columns[f"weight_hh.0.eigenvalue.{i}.imaginary"] == pytest.approx(imaginary, abs=1e-6)
    assert [columns[f"weight_hh.0.singular.{i}"] for i in range(3)] == pytest.approx([0.8, 0.8, 0.5], abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: type(f).__name__)
def test_features_do_not_change_when_hidden_units_are_permuted(family):
    generator = torch.Generator().manual_seed(0)
    drawn = [family.spec.random_params(generator) for _ in range(3)]
    params = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    drawn_elements = family.spec.random_elements(3, generator, torch.float64)
    gauges = {name: torch.ones_like(factor) for name, factor in drawn_elements.gauges.items()}
    moved = family.spec.act_stacked(GroupElement(drawn_elements.permutations, gauges), params)
    for describe in (statistics_of, spectra_of):
        before, after = describe(family.spec, params), describe(family.spec, moved)
        for name in before:
            torch.testing.assert_close(after[name], before[name], atol=1e-9, rtol=1e-9)


def test_what_a_model_does_not_have_is_zero_and_marked_absent(zoo):
    for features in (statistics(zoo), spectra(zoo)):
        gru = np.array(zoo.table.column("family").to_pylist()) == "GRU"
        names = [name for name in features.names if name.startswith("weight_hh.0.r.")]
        assert names
        for name in names:
            assert np.all(column(features, name)[~gru] == 0)
        # Columns that are missing from the same models share one mark.
        marks = [column(features, name) for name in features.names if name.startswith("present.")]
        assert sum(np.array_equal(mark, gru.astype(float)) for mark in marks) == 1


def test_spectra_of_smaller_models_are_padded_with_zeros(zoo):
    features = spectra(zoo)
    sizes = zoo.table.column("hidden_size").to_numpy()
    elman = np.array(zoo.table.column("family").to_pylist()) == "Elman"
    assert np.all(column(features, "weight_hh.0.singular.5")[elman & (sizes == 6)] > 0)
    assert np.all(column(features, "weight_hh.0.singular.5")[sizes == 4] == 0)
    assert np.array_equal(column(features, "present.weight_hh.0.singular.4"), (elman & (sizes == 6)).astype(float))


def test_families_without_recurrent_matrices_have_no_spectra(tmp_path):
    diagonal, whole = LRU(input_size=1, hidden_size=4, output_size=1), FAMILIES[0]
    both = spectra(open_zoo(write_zoo(tmp_path / "both", [diagonal, whole], models=4, rollouts=False)))
    (mark,) = (column(both, name) for name in both.names if name.startswith("present."))
    assert np.array_equal(mark, np.repeat([0.0, 1.0], 8))
    assert np.all(both.values[mark == 0] == 0)
    alone = open_zoo(write_zoo(tmp_path / "alone", [diagonal], models=4, rollouts=False))
    assert spectra(alone).values.shape == (8, 0)
    names = [baseline.name for baseline in baselines(alone)]
    assert names == ["statistics", "statistics+spectra", "markov", "responses", "metadata"]


def test_features_do_not_depend_on_how_the_zoo_is_read(zoo, monkeypatch):
    whole = statistics(zoo).values
    monkeypatch.setattr("weightspace.features.CHUNK", 1)
    np.testing.assert_allclose(statistics(zoo).values, whole, atol=1e-12)


def test_weights_that_are_not_finite_are_refused_by_row(zoo, monkeypatch):
    stacks = list(zoo.stacks())
    params = {name: tensor.clone() for name, tensor in stacks[1].params.items()}
    params["weight_ho"][2, 0, 0] = torch.nan
    broken = [stacks[0], dataclasses.replace(stacks[1], params=params)]
    monkeypatch.setattr(type(zoo), "stacks", lambda self, rows=None, max_models=256: iter(broken))
    row = int(stacks[1].rows[2])
    with pytest.raises(ValueError, match=f"'weight_ho' of row {row} .* NaN or infinity"):
        statistics(zoo)


def test_metadata_holds_records_and_nothing_that_names_a_model(zoo):
    features = metadata(zoo.table)
    assert features.values.shape == (zoo.table.num_rows, len(features.names))
    assert not any("seed" in name or "model_id" in name or "score" in name for name in features.names)
    gru = np.array(zoo.table.column("family").to_pylist()) == "GRU"
    assert np.array_equal(column(features, "family=GRU"), gru.astype(float))
    assert np.array_equal(column(features, "step.category=100"), (zoo.table.column("step").to_numpy() == 100) * 1.0)
    rates = [json.loads(text)["learning_rate"] for text in zoo.table.column("learning_config").to_pylist()]
    np.testing.assert_allclose(column(features, "log.learning.learning_rate"), np.log(rates))
    delays = [json.loads(text)["delay"] for text in zoo.table.column("task_config").to_pylist()]
    np.testing.assert_array_equal(column(features, "task.delay"), delays)
    np.testing.assert_array_equal(
        column(features, "present.family.nonlinearity=relu"), 1.0 - gru, err_msg="GRU has no nonlinearity field"
    )


def test_held_out_rows_have_no_say_in_what_columns_there_are(zoo):
    train = np.arange(zoo.num_rows) % 2 == 0
    sizes = zoo.table.column("hidden_size").to_numpy()
    small = columns_of(zoo, spectra_of).features(sizes == 4)
    assert "weight_hh.0.singular.3" in small.names
    assert "weight_hh.0.singular.4" not in small.names
    whole = spectra(zoo)
    assert np.array_equal(column(small, "weight_hh.0.singular.1"), column(whole, "weight_hh.0.singular.1"))

    def told(rates, flags):
        records = [json.dumps({"rate": r, "flag": f}) for r, f in zip(rates, flags, strict=True)]
        return zoo.table.set_column(zoo.table.column_names.index("learning_config"), "learning_config", [records])

    count = int(train.sum())
    rates, flags = np.ones(zoo.num_rows), np.array(["a"] * zoo.num_rows)
    rates[train], flags[train] = np.linspace(1, 50, count), np.array(["a", "b"] * count)[:count]
    expected = metadata(told(rates.tolist(), flags.tolist()), train)
    assert "log.learning.rate" in expected.names
    rates[~train], flags[~train] = np.linspace(-1e6, 1e6, count), "c"
    found = metadata(told(rates.tolist(), flags.tolist()), train)
    assert found.names == expected.names
    assert np.array_equal(found.values[train], expected.values[train])
    assert np.isfinite(found.values).all()
    # Text where training has numbers is a number that is missing.
    mixed = [rate if known else "?" for rate, known in zip(rates.tolist(), train, strict=True)]
    absent = metadata(told(mixed, flags.tolist()), train)
    assert np.array_equal(absent.values[train], expected.values[train])
    assert (column(absent, "log.learning.rate")[~train] == 0).all()


def test_metadata_reads_nested_records_and_missing_numbers():
    table = pa.table(
        {
            "family": ["A", "A"],
            "family_config": ["{}", "{}"],
            "task": ["T", "T"],
            "task_config": [json.dumps({"spread": {"low": 1.5}, "flag": True}), json.dumps({"flag": False})],
            "learning_config": ["{}", "{}"],
            "num_parameters": [10, 10],
            "step": [0, 7],
        }
    )
    features = metadata(table)
    np.testing.assert_array_equal(column(features, "task.spread.low"), [1.5, 0.0])
    np.testing.assert_array_equal(column(features, "present.task.spread.low"), [1.0, 0.0])
    np.testing.assert_array_equal(column(features, "task.flag=True"), [1.0, 0.0])
