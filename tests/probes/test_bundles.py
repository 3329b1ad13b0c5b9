"""Columns packed into one: groups without conflict, order kept, and trees that see what they saw before."""

import numpy as np
import pytest
import scipy.stats
from sklearn.ensemble import HistGradientBoostingRegressor

from probes import probe
from probes.bundles import Bundles, exclusive
from probes.probe import Design


def sparse(rows=300, seed=0):
    """Columns of three families: five of the first, two of the second, one of the third; one that all have; flags."""
    generator = np.random.default_rng(seed)
    family = generator.integers(3, size=rows)
    values = generator.normal(size=(rows, 9)) * 10.0 ** np.arange(-4, 5)
    owner = np.array([0, 0, 0, 0, 0, 1, 1, 2, 3])
    values *= (owner == 3) | (owner == family[:, None])
    return np.concatenate([values, family[:, None] == [0, 1, 2]], axis=1), family


def test_no_training_row_has_two_columns_of_a_group_and_every_column_is_in_one():
    values, _ = sparse()
    groups = exclusive(values != 0, np.arange(12))
    assert sorted(np.concatenate(groups)) == list(range(12))
    for group in groups:
        assert ((values[:, group] != 0).sum(axis=1) <= 1).all()
    generator = np.random.default_rng(1)
    has = generator.random((5000, 40)) < 0.0005
    groups = exclusive(has, np.arange(40))
    assert len(groups) < 40
    assert all((has[:, group].sum(axis=1) <= 1).all() for group in groups)


def test_bundles_are_as_many_as_the_largest_family_has_columns_beside_flags():
    values, _ = sparse()
    bundles = Bundles(values)
    assert sorted(map(len, bundles.members)) == [1, 1, 1, 1, 1, 1, 1, 2, 3]
    packed = bundles(values)
    for bundle, columns in enumerate(bundles.members):
        for column in columns:
            rows = values[:, column] != 0
            ranks = [scipy.stats.rankdata(side) for side in (packed[rows, bundle], values[rows, column])]
            assert np.array_equal(*ranks)
            assert (np.sign(packed[rows, bundle]) == np.sign(values[rows, column])).all()


def test_what_is_constant_in_training_is_left_out_and_new_kinds_of_rows_keep_the_first():
    values = np.array([[1.0, 0.0, 5.0], [2.0, 0.0, 5.0], [0.0, 3.0, 5.0], [0.0, 4.0, 5.0]])
    bundles = Bundles(values)
    assert [columns.tolist() for columns in bundles.members] == [[0, 1]]
    both = bundles(np.array([[2.0, 4.0, 9.0]]))
    assert both[0, 0] == pytest.approx(2 / np.sqrt((1 + 4) / 2))
    assert Bundles(values[:, 2:])(values[:, 2:]).tolist() == [[0.0]] * 4
    assert np.isfinite(Bundles(values * 1e300)(values * 1e300)).all()


def test_boosting_reads_bundles_of_many_columns_and_every_one_of_few(monkeypatch):
    values, _ = sparse()
    y = np.random.default_rng(0).normal(size=len(values))
    few = Design(values, np.arange(len(values)))
    assert np.array_equal(few.bundled[0], values)
    monkeypatch.setattr(probe, "MANY_COLUMNS", 12)
    many = Design(values[:200], np.arange(200), values[200:250])
    assert [part.shape for part in many.bundled] == [(200, 9), (50, 9)]
    assert many.boosting(y[:200], values[250:], y[200:250]).fit().predicted.shape == (50,)


def test_trees_on_bundles_are_no_worse_than_on_all_columns():
    values, family = sparse(3000)
    generator = np.random.default_rng(2)
    y = np.where(family == 0, values[:, 0] * 1e4, np.where(family == 1, np.abs(values[:, 6]) / 100, values[:, 7] / 1e3))
    y += 0.1 * generator.normal(size=len(y))
    scores = []
    for x in (values, Bundles(values[:2000])(values)):
        trees = HistGradientBoostingRegressor(max_iter=100, max_bins=64, random_state=0).fit(x[:2000], y[:2000])
        scores.append(trees.score(x[2000:], y[2000:]))
    assert scores[1] > 0.9
    assert scores[1] > scores[0] - 0.02
