"""Probing out of distribution: held-out rows shape no fit, each fold has its own, and order needs no means."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import r2_score

from probes import bootstrap, evaluation, fitting, probe, report, scoring
from probes.bootstrap import Resamples
from probes.cli import main
from probes.evaluation import evaluate
from probes.feature_sets import Baseline, Embedding, baselines, read_embeddings
from probes.probe import Design
from probes.problem import NotEnoughError, Question, pose, read_rows
from probes.targets import named_target
from tests.probes.test_probe_report import write_embeddings
from tests.probes.test_probe_targets import make_table
from tests.weightspace.test_splits import HELD_OUT, small_zoo
from weightspace.features import Features
from weightspace.store import SPLITS, divisions, open_zoo

DIVISIONS = [(split, fold) for split, fold, *_ in HELD_OUT]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Few trees, resamples and permutations, for these tests are of what is seen and said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "MOST_TREES", 3)
        patch.setattr(probe, "LOGISTIC_ALPHAS", (1e2,))
        patch.setattr(probe, "RIDGE_ALPHAS", np.array([1e2, 1e0]))
        patch.setattr(bootstrap, "NUM_KENDALL_RESAMPLES", 5)
        patch.setattr(fitting, "NUM_PERMUTATIONS", 2)
        patch.setattr(scoring, "NUM_RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return small_zoo(tmp_path_factory.mktemp("splits") / "zoo", rollouts=False)


class Recorded(Design):
    """A design that keeps what it was made of and fitted: standardisation, labels, predictions of the training rows."""

    made: list = []

    def __init__(self, values, models, validation):
        super().__init__(values, models, validation)
        self.values = values
        scaled = (self.scaler.mean_, self.scaler.scale_, self.path.mean, self.path.values, self.path.basis)
        self.made.append([values, models, validation, *scaled])

    def ridge(self, y, values, y_val=None):
        fit = super().ridge(y, self.values, y_val)
        self.made.append([y, fit.predicted, fit.error])
        return super().ridge(y, values, y_val)

    def boosting(self, y, values, y_val=None):
        fit = super().boosting(y, self.values, y_val).fit()
        self.made.append([y, fit.predicted, fit.error])
        return super().boosting(y, values, y_val)

    def logistic(self, y, values):
        self.made.append([y, super().logistic(y, self.values)])
        return super().logistic(y, values)


def fitted(path, split, fold, monkeypatch):
    """Everything that is fitted for one division."""
    monkeypatch.setattr(fitting, "Design", Recorded)
    monkeypatch.setattr(Recorded, "made", [])
    opened = open_zoo(path)
    own = [one for one in divisions(opened.table, split) if one.fold == fold]
    monkeypatch.setattr(evaluation, "divisions", lambda table, name: own)
    chosen = [named_target(opened.table, name) for name in ("decay", "task")]
    values = np.random.default_rng(0).normal(size=(opened.num_rows, 3))
    embedding = Embedding(name="embedding:a", made_for={(split, fold): np.where(own[0].test[:, None], 7.0, values)})
    with np.errstate(over="ignore"):
        evaluate(opened.table, [embedding, *baselines(opened)], chosen, splits=[split])
    return list(itertools.chain.from_iterable(Recorded.made))


@pytest.mark.parametrize(("split", "fold", "column", "value"), HELD_OUT)
def test_spoilt_held_out_rows_leave_every_fit_the_same(split, fold, column, value, zoo, tmp_path, monkeypatch):
    spoilt = small_zoo(tmp_path / "zoo", rollouts=False, spoilt=(column, value), spoilt_weight=1e4)
    expected = fitted(zoo, split, fold, monkeypatch)
    found = fitted(spoilt, split, fold, monkeypatch)
    assert len(found) == len(expected) > 20
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    elsewhere = ("split_size" if column == "split_task" else "split_task", "out")
    other = small_zoo(tmp_path / "other", rollouts=False, spoilt=elsewhere, spoilt_weight=0.5)
    changed = fitted(other, split, fold, monkeypatch)
    assert not all(np.array_equal(one, other) for one, other in zip(changed, expected, strict=False))


@pytest.fixture(scope="module")
def done(zoo, quick, tmp_path_factory):
    """A folder that `run` has filled: one encoder for every split and fold, one in distribution, one for a fold."""
    out = tmp_path_factory.mktemp("run")
    every = [(out / f"{split}-{fold}", {"split": split, "fold": fold}) for split, fold in DIVISIONS]
    files = [write_embeddings(path, zoo, name="every", **made_for) for path, made_for in every]
    files.append(write_embeddings(out / "older", zoo, name="older"))
    files.append(write_embeddings(out / "both", zoo, name="both", learned_with="no_labels"))
    files.append(write_embeddings(out / "half", zoo, name="both", learned_with="no_labels", split="new_family", fold=1))
    rows = report.run(zoo, files, out / "probes", targets=["score", "family", "task"])
    return rows, json.loads((out / "probes" / "probes.json").read_text()), (out / "probes" / "report.html").read_text()


def test_every_split_has_rows_of_every_baseline_and_its_own_words(done, zoo):
    rows, document, _ = done
    assert document["rows"] == rows
    wanted = {"metadata", "statistics", "spectra", "shuffled", "embedding:every"}
    for split, rule in SPLITS.items():
        here = [row for row in rows if row["split"] == split]
        assert {row["features"] for row in here} >= wanted
        metrics = {row["metric"] for row in here}
        assert metrics == {"r2", "kendall_tau", "accuracy"} | ({"r2_within_cell"} if rule.seen_cells else set())
        pairs = {row["pairs"] for row in here if row["metric"] == "kendall_tau"}
        assert pairs == {"all" if rule.seen_cells else "within_cell"}
        assert {row["num_folds"] for row in here} == {2 if split == "new_family" else 1}
        compared = {row["metric"] for row in here if row["features"] == "embedding:every - statistics"}
        assert compared == {"r2", "r2_within_cell" if rule.seen_cells else "kendall_tau"}
    keys = [tuple(row[key] for key in ("features", "probe", "target", "split", "metric")) for row in rows]
    assert len(set(keys)) == len(keys)


def test_rows_count_what_was_fitted_and_all_that_is_held_out(done, zoo):
    rows, table = done[0], open_zoo(zoo).table
    status = np.array(table.column("status").to_pylist())
    for split in SPLITS:
        parts = divisions(table, split)
        (row,) = [r for r in rows if (r["split"], r["target"], r["features"]) == (split, "task", "metadata")]
        assert row["num_test"] == sum(np.sum(part.test & (status != "diverged")) for part in parts)
        assert row["num_train"] == round(np.mean([np.sum(part.train & (status != "diverged")) for part in parts]))


def test_an_embedding_has_rows_on_the_splits_alone_that_its_encoders_were_trained_for(done):
    rows, document, page = done
    of = {name: {r["split"] for r in rows if name in r["features"]} for name in ("every", "older", "both")}
    assert of == {"every": set(SPLITS), "older": {"in_distribution"}, "both": {"in_distribution"}}
    reasons = document["splits"]["new_family"]["unavailable"]
    both, first, second = (f"new_family, fold {folds}" for folds in ("0; new_family, fold 1", 0, 1))
    assert reasons == {
        "embedding:older": f"no encoder was trained for {both}, only for in_distribution",
        "embedding:both": f"no encoder was trained for {first}, only for in_distribution; {second}",
    }
    assert document["splits"]["new_family"]["folds"] == [0, 1]
    assert document["splits"]["in_distribution"]["unavailable"] == {}
    assert reasons["embedding:older"] in page
    for title in ("In distribution", "New tasks", "New sizes", "New families"):
        assert f"<h2>{title}</h2>" in page
    assert "within-cell τ" in page
    assert not np.any([word in page for word in ("None</", ">nan<", "Undefined")])


def test_a_family_that_is_held_out_whole_cannot_be_named_and_is_said_to_be(done):
    rows, document, page = done
    assert not [row for row in rows if (row["split"], row["target"]) == ("new_family", "family")]
    notes = document["excluded"]["new_family"]["family"]["folds"]
    assert "only one class among the training rows" in notes["0"]["skipped"]
    assert "only one class among the training rows" in page
    assert [row for row in rows if (row["split"], row["target"]) == ("new_size", "family")]


def test_classes_of_held_out_models_must_be_among_those_of_training():
    family = np.repeat(np.array(["Elman", "GRU", "LSTM"])[np.arange(60) % 3], 2)
    table = make_table(family=family.tolist(), fold_family=(family == "LSTM").astype(int))
    guessed, unknown = divisions(table, "new_family")
    target = named_target(table, "family")
    with pytest.raises(NotEnoughError, match="no class of the held-out models is among the training rows"):
        pose(read_rows(table), target, unknown)
    with pytest.raises(NotEnoughError, match="only one class"):
        pose(read_rows(table), target, guessed)


def test_embeddings_that_could_be_judged_nowhere_are_refused(zoo, tmp_path):
    half = write_embeddings(tmp_path / "half", zoo, name="half", split="new_family", fold=1)
    with pytest.raises(ValueError, match=r"'embedding:half' can be judged on none of .*fold 0.*of every fold"):
        report.run(zoo, [half], tmp_path / "out")
    usual = write_embeddings(tmp_path / "usual", zoo)
    with pytest.raises(ValueError, match="can be judged on none of new_task"):
        report.run(zoo, [usual], tmp_path / "out", splits=["new_task"])
    assert not (tmp_path / "out").exists()


def test_embeddings_of_splits_that_are_not_there_are_refused(zoo, tmp_path):
    for changes, message in (
        ({"split": "new_family", "fold": 7}, "made for new_family, fold 7, but this zoo has no such fold"),
        ({"split": "new_world"}, "says split 'new_world' and fold None, which are not understood"),
        ({"split": "new_family"}, "says split 'new_family' and fold None"),
    ):
        path = write_embeddings(tmp_path / "one", zoo, **changes)
        with pytest.raises(ValueError, match=message):
            read_embeddings([path], open_zoo(zoo))
    first = write_embeddings(tmp_path / "a", zoo, name="same")
    second = write_embeddings(tmp_path / "b", zoo, name="same", split="new_task", learned_with="no_labels")
    with pytest.raises(ValueError, match="learned with labels and without"):
        read_embeddings([first, second], open_zoo(zoo))


def test_the_command_judges_on_the_splits_that_are_asked_for(zoo, tmp_path, capsys):
    out = ["--zoo", str(zoo), "--out", str(tmp_path / "out"), "--targets", "trace"]
    assert main(["run", *out, "--splits", "new_size", "new_family", "--table"]) == 0
    printed = capsys.readouterr().out
    assert "trace: within-cell Kendall's tau, new_size" in printed
    assert "test rows in 2 folds" in printed
    assert "in_distribution" not in printed
    assert main(["run", *out, "--splits", "new_sise"]) == 2
    assert "Did you mean 'new_size'?" in capsys.readouterr().err
    assert main(["run", *out, "--splits", "new_size", "new_size"]) == 2


def test_zoos_that_hold_nothing_out_are_probed_in_distribution_and_say_why(tmp_path):
    table = make_table(label=np.arange(120.0))
    sets = [Baseline(name="statistics", choose=lambda train: Features(np.arange(240.0).reshape(120, 2), ["a", "b"]))]
    found = evaluate(table, sets, [named_target(table, "label")])
    assert {row["split"] for row in found.rows} == {"in_distribution"}
    assert "No model is held out for the split new_size" in found.splits["new_size"]["skipped"]
    with pytest.raises(ValueError, match="No model is left to train on for the split new_family"):
        evaluate(table, sets, [named_target(table, "label")], splits=["new_family"])


def test_each_fold_is_judged_by_a_fit_that_never_saw_it():
    # In one fold the label rises with the feature, in the other it falls: what one teaches is wrong in the other.
    generator = np.random.default_rng(0)
    fold = np.repeat(np.arange(60) % 2, 2)
    cause = generator.normal(size=120)
    alike = {name: [value] * 120 for name, value in (("task", "Copy"), ("hidden_size", 8), ("family_config", "{}"))}
    family = np.array(["Elman", "GRU"])[fold].tolist()
    table = make_table(label=cause * np.where(fold, 1, -1), fold_family=fold, family=family, **alike)
    made = Embedding(name="embedding:a", made_for={("new_family", k): cause[:, None] * (k + 1) for k in (0, 1)})
    rows = evaluate(table, [made], [named_target(table, "label")], splits=["new_family"]).rows
    values = {row["metric"]: row["value"] for row in rows if row["features"] == "embedding:a"}
    assert values["r2"] < -2
    assert values["kendall_tau"] < -0.9


def question_of(split, **columns):
    table = make_table(models=40, **columns)
    rows = read_rows(table)
    return Question(tuple(pose(rows, named_target(table, "label"), part) for part in divisions(table, split)))


def test_order_within_cells_is_kendalls_tau_of_pairs_of_one_cell():
    generator = np.random.default_rng(0)
    sizes = {"hidden_size": [8] * 80, "family_config": ["{}"] * 80}
    # Rounded, so that there are ties on both sides.
    label, large = np.round(generator.normal(size=80), 1), np.repeat(np.arange(40) % 3 == 0, 2)
    question = question_of("new_size", label=label, split_size=np.where(large, "out", "in").tolist(), **sizes)
    predicted = np.round(label[question.test] + generator.normal(size=len(question.test)), 1)
    resamples = Resamples(question, 12, 0)
    found = resamples.measure("kendall_tau", predicted)
    for value, counts in zip(found, resamples.counts, strict=True):
        taken = np.repeat(np.arange(len(question.test)), counts[resamples.codes])
        true, guess, cell = label[question.test][taken], predicted[taken], question.cell[taken]
        sums = np.zeros(3)
        for a, b in itertools.combinations(range(len(taken)), 2):
            if cell[a] == cell[b]:
                signs = np.sign(true[a] - true[b]), np.sign(guess[a] - guess[b])
                sums += (signs[0] * signs[1], abs(signs[0]), abs(signs[1]))
        assert value == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-12)
    one = question.cell == question.cell[0]
    alone = dataclasses.replace(question.problems[0], test=question.test[one])
    (tau,) = Resamples(Question((alone,)), 0, 0).measure("kendall_tau", predicted[one])
    assert tau == pytest.approx(scipy.stats.kendalltau(label[question.test][one], predicted[one]).statistic, abs=1e-12)
    assert (resamples.measure("kendall_tau", np.zeros(len(predicted))) == 0).all()


def test_pairs_are_counted_in_blocks_with_the_same_result(monkeypatch):
    label = np.random.default_rng(0).normal(size=80)
    question = question_of("new_size", label=label, split_size=["in"] * 40 + ["out"] * 40)
    resamples, predicted = Resamples(question, 5, 0), np.sin(label[question.test] * 3)
    whole = resamples.measure("kendall_tau", predicted)
    monkeypatch.setattr(bootstrap, "PAIRS_BLOCK", 2)
    np.testing.assert_allclose(resamples.measure("kendall_tau", predicted), whole, atol=1e-12)


def test_folds_are_judged_together_with_deviations_from_the_mean_of_each():
    generator = np.random.default_rng(0)
    fold = np.repeat(np.arange(40) % 3, 2)
    label = generator.normal(size=80) + 50.0 * fold
    question = question_of("new_family", label=label, fold_family=fold)
    assert sorted(question.test) == list(range(80))
    predicted = label[question.test] + generator.normal(size=80)
    resamples = Resamples(question, 8, 0)
    found = resamples.measure("r2", predicted)
    for value, counts in zip(found, resamples.counts, strict=True):
        taken = np.repeat(np.arange(80), counts[resamples.codes])
        true, guess, of = label[question.test][taken], predicted[taken], fold[question.test][taken]
        squares = sum(np.sum((true[of == k] - true[of == k].mean()) ** 2) for k in np.unique(of))
        assert value == pytest.approx(1 - np.sum((true - guess) ** 2) / squares, abs=1e-9)
    # Knowing the folds apart is worth nothing, though it explains almost everything of the labels.
    means = np.array([label[fold == k].mean() for k in range(3)])[fold[question.test]]
    assert r2_score(label[question.test], means) > 0.99
    assert resamples.measure("r2", means)[0] == pytest.approx(0, abs=1e-9)
