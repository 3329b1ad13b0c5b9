"""Probes on planted signals, against independent references, and on nothing at all."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.preprocessing import StandardScaler

from probes import boosting, bootstrap, probe
from probes.bootstrap import Resamples
from probes.evaluation import evaluate
from probes.feature_sets import Baseline, Embedding, FeatureSet
from probes.probe import Design
from probes.problem import Question, pose, read_rows
from probes.ridge import LeftOut, RidgePath
from probes.targets import named_target
from tests.probes.test_probe_targets import make_table
from weightspace.features import Features
from weightspace.store import divide

ROW = {"features", "target", "learned_with", "split", "metric", "value", "low", "high", "num_train", "num_test"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few trees and resamples where they do not matter."""
    monkeypatch.setattr(probe, "MOST_TREES", 20)
    monkeypatch.setattr(bootstrap, "NUM_KENDALL_RESAMPLES", 20)


def features(name: str, values: np.ndarray, learned_with: str | None = None) -> FeatureSet:
    if name.startswith("embedding:"):
        return Embedding(name=name, learned_with=learned_with, made_for={("in_distribution", None): values})
    names = [f"column {i}" for i in range(values.shape[1])]
    return Baseline(name=name, choose=lambda train: Features(values, names))


def table(*arguments, **options):
    return evaluate(*arguments, **options).rows


def planted(models: int = 150, noise: float = 0.01, seed: int = 0):
    """A table whose label is a linear function of hidden causes (rows, 3), plus a shift by family."""
    generator = np.random.default_rng(seed)
    zoo_table = make_table(models=models, seed=seed)
    causes = generator.normal(size=(2 * models, 3))
    family = np.array(zoo_table.column("family").to_pylist()) == "GRU"
    label = causes @ [1.0, -2.0, 0.5] + 8.0 * family + noise * generator.normal(size=2 * models)
    return zoo_table.append_column("label", [label]), causes, family


def found(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_a_planted_signal_is_found_and_shuffled_labels_are_not():
    zoo_table, causes, _ = planted()
    sets = [features("embedding:causes", causes, "labels"), features("statistics", causes**2)]
    # One family, size and task: with few training rows a cell's mean is noisy, which nothing can predict.
    one_cell = {
        "family": ["Elman"] * 300,
        "task": ["Copy"] * 300,
        "family_config": ["{}"] * 300,
        "hidden_size": [8] * 300,
    }
    zoo_table = make_table(models=150, label=causes @ [1.0, -2.0, 0.5], **one_cell)
    rows = table(zoo_table, sets, [named_target(zoo_table, "label")])
    for row in rows:
        assert set(row) >= ROW | {"probe", "num_seeds"}
        json.dumps(row, allow_nan=False)
    best = found(rows, features="embedding:causes", metric="r2_within_cell")
    assert 0.97 < best["low"] <= best["value"] <= best["high"] <= 1
    assert found(rows, features="embedding:causes", metric="r2")["low"] > 0.999
    assert (best["learned_with"], best["probe"], best["split"]) == ("labels", "ridge", "in_distribution")
    control = found(rows, features="shuffled", metric="r2_within_cell")
    assert control["of"] == "embedding:causes"
    assert control["low"] <= 0 <= control["high"]
    assert abs(control["value"]) < 0.05
    difference = found(rows, features="embedding:causes - statistics", metric="r2_within_cell", probe="ridge")
    assert difference["low"] > 0.5
    names = {(row["features"], row["probe"]) for row in rows if row["metric"] == "r2"}
    assert ("embedding:causes - statistics", "ridge - gradient_boosting") in names
    assert ("statistics", "gradient_boosting") in names
    assert ("embedding:causes", "gradient_boosting") not in names


@pytest.mark.parametrize("seed", range(6))
def test_the_control_contains_zero_on_noise(seed):
    generator = np.random.default_rng(seed)
    zoo_table = make_table(models=120, seed=seed).append_column("label", [generator.normal(size=240)])
    noise = features("embedding:noise", generator.normal(size=(240, 30)))
    rows = table(zoo_table, [noise], [named_target(zoo_table, "label")], seed)
    control = found(rows, features="shuffled", metric="r2_within_cell")
    assert control["low"] <= 0 <= control["high"]


def test_what_metadata_tells_counts_between_cells_only():
    zoo_table, _, family = planted(noise=1.0)
    metadata = features("metadata", np.stack([family, ~family], axis=1).astype(float))
    rows = table(zoo_table, [metadata], [named_target(zoo_table, "label")])
    assert found(rows, features="metadata", metric="r2", probe="ridge")["value"] > 0.4
    for row in rows:
        if row["metric"] == "r2_within_cell":
            assert row["value"] == pytest.approx(0, abs=0.02)
    assert found(rows, features="shuffled", metric="r2")["of"] == "metadata"


def test_a_label_constant_in_every_cell_has_no_within_cell_r2():
    zoo_table, causes, family = planted()
    zoo_table = zoo_table.append_column("constant", [0.1 + 0.7 * family])
    rows = table(zoo_table, [features("statistics", causes)], [named_target(zoo_table, "constant")])
    assert found(rows, features="statistics", metric="r2_within_cell", probe="ridge")["value"] is None


def test_features_against_themselves_differ_by_exactly_zero():
    zoo_table, causes, _ = planted(noise=2.0)
    sets = [features("embedding:same", causes), features("statistics", causes.copy())]
    rows = table(zoo_table, sets, [named_target(zoo_table, "label")])
    for metric in ("r2", "r2_within_cell"):
        row = found(rows, features="embedding:same - statistics", probe="ridge", metric=metric)
        assert (row["value"], row["low"], row["high"]) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(80, 12), (30, 50)])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e4])
def test_ridge_equals_sklearn(shape, alpha):
    generator = np.random.default_rng(0)
    x, y, x_test = (
        generator.normal(size=shape),
        generator.normal(size=(shape[0], 2)),
        generator.normal(size=(7, shape[1])),
    )
    (ours,) = RidgePath(x).predict(x_test, y, [alpha])
    assert ours == pytest.approx(Ridge(alpha=alpha, solver="svd").fit(x, y).predict(x_test), abs=1e-8)


@pytest.mark.parametrize("columns", [20, 150])
def test_errors_on_models_left_out_are_those_of_as_many_fits(columns):
    generator = np.random.default_rng(0)
    models = generator.permutation(np.repeat(np.arange(30), np.repeat([1, 2, 5], 10)))
    x, alphas = generator.normal(size=(len(models), columns)), [1e-3, 1.0, 1e3]
    y = x[:, :2] + generator.normal(size=(len(models), 2))
    errors = LeftOut(RidgePath(x), models, alphas).errors(y)
    expected = np.zeros((3, 2))
    for i, alpha in enumerate(alphas):
        for fit, held in LeaveOneGroupOut().split(x, groups=models):
            guess = Ridge(alpha=alpha, solver="svd").fit(x[fit], y[fit]).predict(x[held])
            expected[i] += np.sum((y[held] - guess) ** 2, axis=0) / len(models)
    assert errors == pytest.approx(expected, rel=1e-6)


def test_the_penalty_is_the_one_that_predicts_models_left_out_best():
    generator = np.random.default_rng(0)
    models = np.repeat(np.arange(40), 3)
    values = generator.normal(size=(120, 20)) * 5 + 3
    y = values[:, :1] + 8 * generator.normal(size=(120, 1))
    design, x_test = Design(values, models), generator.normal(size=(9, 20))
    x = StandardScaler().fit_transform(values)
    errors = [
        sum(
            np.sum((Ridge(alpha=alpha).fit(x[fit], y[fit]).predict(x[held]) - y[held].ravel()) ** 2)
            for fit, held in LeaveOneGroupOut().split(x, groups=models)
        )
        for alpha in probe.RIDGE_ALPHAS
    ]
    best = Ridge(alpha=probe.RIDGE_ALPHAS[np.argmin(errors)]).fit(x, y)
    assert 0 < np.argmin(errors) < len(errors) - 1
    expected = best.predict(StandardScaler().fit(values).transform(x_test)).reshape(-1, 1)
    fit = design.ridge(y, x_test)
    assert fit.predicted == pytest.approx(expected, abs=1e-8)
    assert fit.error == pytest.approx(np.min(errors) / len(y))


def test_no_model_is_on_both_sides_of_a_fold():
    models = np.random.default_rng(0).integers(17, size=200)
    design = Design(np.zeros((200, 1)), models)
    held_out = []
    for fit, held in design.folds(5):
        assert not set(models[fit]) & set(models[held])
        held_out.extend(held)
    assert sorted(held_out) == list(range(200))
    assert len(list(Design(np.zeros((4, 1)), np.array([0, 0, 1, 1])).folds(5))) == 2


def test_columns_that_are_constant_in_training_have_no_say():
    generator = np.random.default_rng(0)
    values, models = generator.normal(size=(60, 3)), np.arange(60)
    values[:, 1] = 0.1
    y, x_test = values[:, :1].copy(), generator.normal(size=(5, 3))
    wild = x_test.copy()
    wild[:, 1] = 1e12
    assert (Design(values, models).ridge(y, wild).predicted == Design(values, models).ridge(y, x_test).predicted).all()
    nothing = Design(np.ones((60, 2)), models)
    assert nothing.ridge(y, x_test[:, :2]).predicted == pytest.approx(np.full((5, 1), y.mean()))
    assert np.ptp(nothing.boosting(y[:, 0], x_test[:, :2]).fit().predicted) == 0


def test_bootstrap_values_equal_those_of_the_rows_drawn():
    zoo_table, _, _ = planted(models=60)
    rows = read_rows(zoo_table)
    problem = pose(rows, named_target(zoo_table, "label"), divide(zoo_table, "in_distribution"))
    predicted = problem.y[problem.test] + np.random.default_rng(1).normal(size=len(problem.test))
    resamples = Resamples(Question((problem,)), 20, 0)
    model = rows.model[problem.test]
    fast = {m: resamples.measure(m, predicted) for m in ("r2", "r2_within_cell", "kendall_tau")}
    assert (resamples.counts[0] == 1).all()
    for draw, counts in enumerate(resamples.counts):
        assert counts.sum() == len(np.unique(model))
        drawn = [
            np.flatnonzero(model == one) for one, n in zip(np.unique(model), counts, strict=True) for _ in range(n)
        ]
        chosen = np.concatenate(drawn)
        true, guess = problem.y[problem.test][chosen], predicted[chosen]
        assert fast["r2"][draw] == pytest.approx(r2_score(true, guess), abs=1e-9)
        assert fast["kendall_tau"][draw] == pytest.approx(scipy.stats.kendalltau(true, guess).statistic, abs=1e-12)
        seen = problem.seen[problem.test][chosen]
        residual, guess = problem.residual[problem.test][chosen][seen], guess[seen]
        expected = 1 - np.sum((residual - guess) ** 2) / np.sum(residual**2)
        assert fast["r2_within_cell"][draw] == pytest.approx(expected, abs=1e-9)


def test_resamples_of_a_target_are_the_same_for_all_features_and_differ_by_seed():
    zoo_table, _, _ = planted(models=60)
    rows = read_rows(zoo_table)
    question = Question((pose(rows, named_target(zoo_table, "label"), divide(zoo_table, "in_distribution")),))
    assert (Resamples(question, 9, 0).counts == Resamples(question, 9, 0).counts).all()
    assert (Resamples(question, 9, 0).counts != Resamples(question, 9, 1).counts).any()


def test_classes_are_told_apart_and_guessing_is_shown():
    zoo_table, causes, family = planted()
    sets = [features("embedding:family", causes + 6 * family[:, None])]
    rows = table(zoo_table, sets, [named_target(zoo_table, name) for name in ("family", "task")])
    assert found(rows, features="embedding:family", target="family", metric="accuracy")["value"] > 0.95
    assert found(rows, features="embedding:family", target="task", metric="accuracy")["value"] < 0.75
    guess = found(rows, features="shuffled", target="family", metric="accuracy")
    assert 0.3 < guess["value"] < 0.7


def test_constant_predictions_and_labels_give_null_and_no_warning():
    zoo_table, _, _ = planted()
    zoo_table = zoo_table.append_column("same", [np.full(300, 0.1)])
    targets = [named_target(zoo_table, name) for name in ("same", "label")]
    rows = table(zoo_table, [features("metadata", np.ones((300, 1)))], targets)
    for metric in ("r2", "r2_within_cell", "kendall_tau"):
        assert found(rows, target="same", metric=metric, features="metadata", probe="ridge")["value"] is None
    assert found(rows, target="label", metric="kendall_tau", features="metadata", probe="ridge")["value"] is None


def test_features_that_are_not_finite_are_refused_by_name_unless_the_model_diverged():
    zoo_table, causes, _ = planted()
    causes[7, 1] = np.nan
    target = [named_target(zoo_table, "label")]
    with pytest.raises(ValueError, match=r"'statistics' hold 1 value.*'column 1' at row 7"):
        table(zoo_table, [features("statistics", causes)], target)
    status = ["diverged" if row == 7 else "ok" for row in range(300)]
    zoo_table = zoo_table.set_column(zoo_table.column_names.index("status"), "status", [status])
    assert table(zoo_table, [features("embedding:a", causes)], target)


def test_features_that_do_not_fit_are_refused():
    zoo_table, causes, _ = planted()
    target = [named_target(zoo_table, "label")]
    with pytest.raises(ValueError, match=r"have shape \(299, 3\), expected \(300, 3\)"):
        table(zoo_table, [features("statistics", causes[1:])], target)
    for sets in ([], [features("statistics", causes)] * 2):
        with pytest.raises(ValueError, match="different names"):
            table(zoo_table, sets, target)


def test_targets_that_cannot_be_probed_are_skipped_and_none_left_is_an_error():
    zoo_table, causes, _ = planted()
    zoo_table = zoo_table.append_column("empty", [np.full(300, np.nan)])
    targets = [named_target(zoo_table, name) for name in ("empty", "label")]
    evaluation = evaluate(zoo_table, [features("embedding:a", causes)], targets)
    assert "0 train model" in evaluation.excluded["in_distribution"]["empty"]["skipped"]
    assert {row["target"] for row in evaluation.rows} == {"label"}
    with pytest.raises(ValueError, match="No target can be probed"):
        evaluate(zoo_table, [features("embedding:a", causes)], targets[:1])


def test_gradient_boosting_finds_what_a_line_cannot(monkeypatch):
    monkeypatch.setattr(probe, "MOST_TREES", 300)
    generator = np.random.default_rng(0)
    values = generator.uniform(-1, 1, size=(600, 4))
    y, models = values[:, 0] * values[:, 1], np.repeat(np.arange(300), 2)
    design = Design(values[:500], models[:500])
    boosted = design.boosting(y[:500], values[500:]).fit().predicted
    line = design.ridge(y[:500, None], values[500:]).predicted[:, 0]
    assert r2_score(y[500:], boosted) > 0.5
    assert r2_score(y[500:], line) < 0.1


def test_the_same_seed_gives_the_same_rows():
    zoo_table, causes, _ = planted(models=60)
    sets = [features("embedding:a", causes), features("statistics", causes**2)]
    targets = [named_target(zoo_table, "label")]
    first, second = (table(zoo_table, sets, targets, seed=3) for _ in range(2))
    assert first == second
    keys = [(row["features"], row["probe"], row["target"], row["metric"]) for row in first]
    assert not any(a == b for a, b in itertools.combinations(keys, 2))


def test_boosting_stops_where_validation_models_gain_no_more(monkeypatch):
    monkeypatch.setattr(probe, "MOST_TREES", 400)
    generator = np.random.default_rng(0)
    values = generator.normal(size=(300, 5))
    y, models = np.sin(2 * values[:, 0]) + 0.5 * generator.normal(size=300), np.repeat(np.arange(150), 2)
    train, val, test = slice(0, 160), slice(160, 230), slice(230, 300)
    fit = Design(values[train], models[train], values[val]).boosting(y[train], values[test], y[val]).fit()
    scaler = StandardScaler().fit(values[train])
    trees = boosting.make_trees(400).fit(scaler.transform(values[train]), y[train])
    errors = [np.mean((y[val] - guess) ** 2) for guess in trees.staged_predict(scaler.transform(values[val]))]
    (best,) = np.flatnonzero(np.isclose(errors, fit.error, rtol=1e-9))
    # No tree before was better, nor any within the patience after it.
    assert 5 < best < 399 - boosting.PATIENCE
    assert best == np.argmin(errors[: best + boosting.PATIENCE])
    for place, guess in enumerate(trees.staged_predict(scaler.transform(values[test]))):
        if place == best:
            assert fit.predicted == pytest.approx(guess)


def test_the_error_of_ridge_is_that_on_validation_rows_where_there_are_any():
    generator = np.random.default_rng(0)
    values, models = generator.normal(size=(90, 4)), np.arange(90)
    y = values @ generator.normal(size=(4, 2)) + generator.normal(size=(90, 2))
    design = Design(values[:60], models[:60], values[60:80])
    fit, guess = design.ridge(y[:60], values[80:], y[60:80]), design.ridge(y[:60], values[60:80]).predicted
    assert fit.error == pytest.approx(np.mean((y[60:80] - guess) ** 2, axis=0))
    assert len(fit.predicted) == 10


def test_the_strongest_baseline_is_chosen_by_validation_models_and_by_kind():
    zoo_table, causes, _ = planted(models=200, noise=0.3)
    val = np.array(zoo_table.column("split").to_pylist()) == "val"
    test = np.array(zoo_table.column("split").to_pylist()) == "test"
    generator = np.random.default_rng(1)
    # Better on the test models alone, and so not to be chosen.
    lucky = causes + np.where(test, 0.0, 1.0)[:, None] * generator.normal(size=causes.shape)
    steady = causes + np.where(val, 0.2, 0.6)[:, None] * generator.normal(size=causes.shape)
    queries = dataclasses.replace(features("responses", causes), reads="queries")
    sets = [features("embedding:a", causes, "labels"), features("statistics", lucky), features("spectra", steady)]
    asking = dataclasses.replace(features("embedding:q", causes, "no_labels"), reads="queries")
    rows = table(zoo_table, [*sets, queries, asking], [named_target(zoo_table, "label")])
    flagged = {(row["metric"], row["features"]) for row in rows if row.get("strongest")}
    metrics = ("r2_within_cell", "r2")
    assert flagged == {(m, f) for m in metrics for f in ("embedding:a - spectra", "embedding:q - responses")}
    assert sum(bool(row.get("strongest")) for row in rows) == 4


def test_what_an_embedding_adds_is_the_difference_to_the_bar_by_the_same_probe():
    zoo_table, causes, _ = planted(models=150, noise=0.3)
    bar = features("statistics+spectra", causes[:, :2])
    rows = table(zoo_table, [features("embedding:a", causes[:, 2:], "labels"), bar], [named_target(zoo_table, "label")])
    both, alone = "embedding:a + statistics+spectra", "statistics+spectra"
    for probe_name in ("ridge", "gradient_boosting"):
        added = found(rows, features=f"{both} - {alone}", probe=probe_name, metric="r2_within_cell")
        first, second = (found(rows, features=f, probe=probe_name, metric="r2_within_cell") for f in (both, alone))
        assert added["adds"]
        assert added["value"] == pytest.approx(first["value"] - second["value"])
    assert found(rows, features=both, probe="ridge", metric="r2_within_cell")["value"] > 0.8
    assert found(rows, features=f"{both} - {alone}", probe="ridge", metric="r2_within_cell")["low"] > 0


def test_targets_whose_ingredients_were_trained_on_are_marked_and_come_last():
    zoo_table, causes, _ = planted(models=80)
    zoo_table = zoo_table.append_column("other", [causes[:, 0]])
    adjacent = dataclasses.replace(features("embedding:a", causes, "no_labels"), label_adjacent=("label",))
    targets = [named_target(zoo_table, name) for name in ("label", "other")]
    rows = table(zoo_table, [adjacent, features("statistics", causes)], targets)
    assert list(dict.fromkeys(row["target"] for row in rows)) == ["other", "label"]
    for row in rows:
        assert row["label_adjacent"] == (row["target"] == "label" and row["features"].startswith("embedding:a"))


def test_an_encoder_is_set_against_itself_before_training():
    zoo_table, causes, _ = planted(models=80)
    made = {"made_for": {("in_distribution", None): causes}, "encoder": "E"}
    sets = [
        Embedding(name="embedding:a", learned_with="labels", **made),
        Embedding(name="untrained:E", **made),
        Embedding(name="untrained:F", **made | {"encoder": "F"}),
    ]
    rows = table(zoo_table, sets, [named_target(zoo_table, "label")])
    differences = {row["features"] for row in rows if " - " in row["features"]}
    assert differences == {"embedding:a - untrained:E"}
    row = found(rows, features="embedding:a - untrained:E", metric="r2")
    assert (row["value"], row["low"], row["high"]) == (0, 0, 0)
    assert found(rows, features="untrained:E", metric="r2")["learned_with"] is None
