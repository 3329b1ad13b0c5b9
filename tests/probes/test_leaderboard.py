"""Paired comparisons of encoders over seeds."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from probes.leaderboard import boards, holm, indistinct, leaderboard


def scores(**methods):
    return {name: dict(enumerate(values)) for name, values in methods.items()}


def test_a_pair_is_told_apart_as_by_a_paired_t_test():
    a, b = [0.50, 0.62, 0.57, 0.60], [0.40, 0.55, 0.46, 0.52]
    board = leaderboard("t", "s", "r2", scores(a=a, b=b))
    (pair,) = board.pairs
    assert pair.p == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
    d = np.subtract(a, b)
    # 3.182 is the 97.5th percentile of Student's t with 3 degrees of freedom.
    half = 3.182446 * math.sqrt(np.sum((d - d.mean()) ** 2) / 3) / 2
    assert pair.critical == pytest.approx(half, rel=1e-6)
    assert pair.difference == pytest.approx(d.mean())
    assert pair.differ == (pair.difference > half)
    assert pair.differ
    assert [entry.name for entry in board.entries] == ["a", "b"]


def test_holm_holds_the_smallest_p_against_all_pairs_and_stops_at_the_first_that_fails():
    generator = np.random.default_rng(0)
    values = {name: mean + 0.1 * generator.normal(size=6) for name, mean in (("a", 1.0), ("b", 0.9), ("c", 0.2))}
    pairs = holm(["a", "b", "c"], values)
    raw = [scipy.stats.ttest_rel(values[p.better], values[p.worse]).pvalue for p in pairs]
    assert raw == sorted(raw)
    adjusted = np.maximum.accumulate(np.array(raw) * [3, 2, 1])
    assert [pair.p for pair in pairs] == pytest.approx(np.minimum(adjusted, 1))
    # Where all smaller ones count, a difference counts just where it is above its critical one.
    assert [pair.differ for pair in pairs] == [True, True, False]
    assert [abs(pair.difference) > pair.critical for pair in pairs] == [True, True, False]


def test_methods_that_are_the_same_are_never_told_apart():
    board = leaderboard("t", "s", "r2", scores(a=[0.5, 0.6], b=[0.5, 0.6], c=[0.25, 0.35]))
    close = indistinct(board)
    assert close["a"] == ["b"]
    assert close["c"] == []
    assert {(p.better, p.worse): p.p for p in board.pairs}["a", "b"] == 1.0


def test_false_alarms_over_a_family_of_pairs_stay_below_the_level():
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        drawn = generator.normal(size=(3, 4))
        values = dict(zip("abc", drawn, strict=True))
        alarms += any(pair.differ for pair in holm(list("abc"), values))
    # Of 400 draws at 5%, 99.9% of binomial counts are below 35.
    assert alarms < 35


def test_of_one_seed_nothing_can_be_said():
    board = leaderboard("t", "s", "r2", scores(a=[0.5], b=[0.9]))
    assert board.pairs == []
    assert "nothing can be said" in str(board.note)
    assert [(entry.name, entry.low) for entry in board.entries] == [("b", None), ("a", None)]
    json.dumps(board.record, allow_nan=False)


def test_only_seeds_that_all_methods_have_are_compared():
    board = leaderboard("t", "s", "r2", {"a": {0: 1.0, 1: 2.0, 2: 9.0}, "b": {1: 1.0, 2: 3.0, 5: 7.0}})
    assert {entry.name: entry.scores for entry in board.entries} == {"a": [2.0, 9.0], "b": [1.0, 3.0]}
    assert leaderboard("t", "s", "r2", {"a": {0: 1.0}, "b": {1: 1.0}}).entries == []


def test_rows_are_ranked_by_target_and_by_the_mean_over_targets():
    def row(features, target, value, metric="r2_within_cell"):
        fields = {"features": features, "target": target, "value": value, "metric": metric}
        return fields | {"split": "s", "probe": "ridge"}

    methods = {"embedding:E": ("E", 0), "embedding:E#1": ("E", 1), "embedding:F": ("F", 0), "embedding:F#1": ("F", 1)}
    rows = [row(name, t, 0.1 * i + (t == "v")) for i, name in enumerate(methods) for t in ("u", "v")]
    rows += [row("statistics", "u", 9.0), row("embedding:E", "u", 9.0, metric="r2")]
    mean, u, v = boards(rows, methods)
    assert [board.target for board in (mean, u, v)] == ["mean over targets", "u", "v"]
    assert {entry.name: entry.scores for entry in u.entries} == {
        "F": pytest.approx([0.2, 0.3]),
        "E": pytest.approx([0.0, 0.1]),
    }
    assert mean.entries[0].mean == pytest.approx(np.mean([u.entries[0].mean, v.entries[0].mean]))
