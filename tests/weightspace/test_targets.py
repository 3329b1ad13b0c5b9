"""Targets and cell means against values worked out by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest

from weightspace.data.targets import Target, read_labels
from weightspace.store import cell_codes


def table(values, **columns):
    count = len(values)
    config = json.dumps({"hidden_size": 4, "input_size": 1, "output_size": 1})
    same = {"family": "A", "family_config": config, "hidden_size": 4, "task": "T", "step": 5}
    base = {name: [value] * count for name, value in same.items()}
    return pa.table({**base, **columns, "label": pa.array(values, from_pandas=True)})


def test_cell_means_are_those_of_the_training_rows_alone():
    train = np.array([True, True, False, True, False, False])
    steps = [1, 1, 1, 2, 2, 3]
    labels = read_labels(
        table([1.0, 3.0, 100.0, 7.0, 50.0, 9.0], step=steps), [Target(name="label", quantile=0.0)], train
    )
    np.testing.assert_array_equal(labels.cell_means[:, 0], [2.0, 2.0, 2.0, 7.0, 7.0, np.nan])
    # Held-out values lie outside the training range and are clipped to it.
    np.testing.assert_array_equal(labels.values[:, 0], [1.0, 3.0, 7.0, 7.0, 7.0, 7.0])


def test_values_are_clipped_to_declared_bounds_and_training_quantiles():
    values = np.append(np.arange(101.0), [1e6, -1e6])
    train = np.ones(103, dtype=bool)
    train[-2:] = False
    target = Target(name="label", low=10.0, quantile=0.05)
    clipped = read_labels(table(values), [target], train).values[:, 0]
    assert clipped.min() == 10.0
    assert clipped.max() == 95.0
    assert clipped[-2] == 95.0
    np.testing.assert_array_equal(clipped[11:95], np.arange(11.0, 95.0))


def test_null_and_infinite_labels_do_not_apply_and_untrained_snapshots_can_be_left_out():
    train = np.ones(5, dtype=bool)
    made = table([1.0, None, np.inf, 2.0, 3.0], step=[0, 1, 1, 1, 1])
    kept = read_labels(made, [Target(name="label", quantile=0.0)], train).values[:, 0]
    np.testing.assert_array_equal(kept, [1.0, np.nan, np.nan, 2.0, 3.0])
    target = Target(name="label", quantile=0.0, trained_only=True)
    kept = read_labels(made, [target], train).values[:, 0]
    np.testing.assert_array_equal(kept, [np.nan, np.nan, np.nan, 2.0, 3.0])


def test_cells_differ_by_family_config_size_task_and_step_but_not_by_the_tasks_sizes():
    def config(**fields):
        return json.dumps({"hidden_size": 4, "input_size": 1, "output_size": 1, **fields})

    configs = [config(), config(input_size=9), config(hidden_size=8), config(nonlinearity="relu"), config(), config()]
    made = table(
        [0.0] * 6, family_config=configs, task=["T", "T", "T", "T", "U", "T"], step=[5, 5, 5, 5, 5, 6], family=["A"] * 6
    )
    assert cell_codes(made).tolist() == [0, 0, 1, 2, 3, 4]


def test_unknown_text_and_empty_targets_are_refused():
    made, train = table([1.0, 2.0, 3.0]), np.ones(3, dtype=bool)
    with pytest.raises(ValueError, match=r"No column of the zoo is called 'lable'; .* Did you mean 'label'"):
        read_labels(made, [Target(name="lable")], train)
    with pytest.raises(ValueError, match="expected numbers"):
        read_labels(made, [Target(name="family")], train)
    with pytest.raises(ValueError, match="has 0 values among the training rows"):
        read_labels(made, [Target(name="label")], np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="low must be below high"):
        Target(name="label", low=1.0, high=1.0)


def test_labels_beyond_float32_do_not_apply_unless_they_are_clipped():
    made, train = table([1.0, 2.0, 3.0, 1e60, -1e60]), np.ones(5, dtype=bool)
    kept = read_labels(made, [Target(name="label", quantile=0.0)], train).values[:, 0]
    np.testing.assert_array_equal(kept, [1.0, 2.0, 3.0, np.nan, np.nan])
    bounded = Target(name="label", low=-10.0, high=10.0, quantile=0.0)
    np.testing.assert_array_equal(read_labels(made, [bounded], train).values[:, 0], [1.0, 2.0, 3.0, 10.0, -10.0])


def test_cells_do_not_differ_by_the_size_of_the_start_that_a_task_gives():
    configs = [json.dumps({"hidden_size": 4, "input_size": 1, "output_size": n, "start_size": n}) for n in (8, 16)]
    assert cell_codes(table([1.0, 2.0], family_config=configs)).tolist() == [0, 0]
