"""The answer in words: what is said of an embedding, and never more than its interval allows."""

import pytest

from probes.answer import (
    above_chance,
    answer_lines,
    beaten_by_metadata,
    chance_sentence,
    comparisons,
    metadata_sentence,
    sentence,
    verdict,
)


def row(features, value, low, high, target="score", probe="ridge", split="in_distribution", **fields):
    made = {"features": features, "value": value, "low": low, "high": high, "target": target, "probe": probe}
    made |= {"split": split, "metric": "r2_within_cell", "learned_with": "labels", "label_adjacent": False}
    return made | {"num_train": 10, "num_test": 5, "num_seeds": 1, "num_folds": 1} | fields


def against(name, baseline, value, low, high, **fields):
    return row(f"embedding:{name} - {baseline}", value, low, high, **{"strongest": True} | fields)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.1, 0.1, "undecided"),
        (0.0, 0.1, "undecided"),
        (None, None, "undefined"),
    ],
)
def test_a_verdict_needs_an_interval_that_leaves_out_zero(low, high, expected):
    assert verdict({"low": low, "high": high}) == expected


def test_the_sentence_says_better_worse_and_undecided_apart():
    rows = [
        against("a", "spectra", 0.1, 0.05, 0.2, target="rank"),
        against("a", "markov", -0.1, -0.2, -0.05, target="decay", label_adjacent=True),
        against("a", "markov", 0.1, -0.2, 0.3),
    ]
    assert sentence(rows) == (
        "On unseen models, a (learned with labels) reads rank better than the strongest baseline of its kind, reads "
        "decay† worse and leaves score undecided."
    )
    rows = [rows[2], rows[2] | {"features": "embedding:b - markov", "learned_with": "no_labels"}]
    assert "; b (learned without labels) leaves score undecided beside the strongest baseline" in sentence(rows)


def test_of_many_embeddings_the_sentence_counts():
    rows = [against(name, "markov", 0.1, low, 0.2) for name, low in (("a", 0.05), ("b", -0.1), ("c", -0.1))]
    assert sentence(rows) == (
        "On unseen models, of 3 embeddings beside the strongest baseline of their kind: score 1 better (a), 2 undecided"
        "."
    )


def test_other_metrics_and_baselines_are_not_the_answer():
    rows = [
        against("a", "markov", 0.1, 0.05, 0.2, strongest=False),
        against("a", "markov", 0.1, 0.05, 0.2, metric="r2"),
        against("a", "markov", 0.1, 0.05, 0.2, metric="kendall_tau", pairs="all"),
        row("embedding:a + x - x", 0.1, 0.05, 0.2, adds=True),
    ]
    assert comparisons(rows) == []
    assert sentence(rows).startswith("No embedding")


def test_values_beside_a_difference_are_those_of_its_probes():
    rows = [
        row("embedding:a", 0.4, 0.3, 0.5),
        row("embedding:a", 0.9, 0.3, 0.5, metric="r2"),
        row("spectra", 0.1, 0.0, 0.2),
        row("spectra", 0.3, 0.2, 0.4, probe="gradient_boosting"),
        against("a", "spectra", 0.1, 0.05, 0.2, probe="ridge - gradient_boosting"),
    ]
    (one,) = comparisons(rows)
    assert (one.value, one.bar, one.embedding, one.baseline) == (0.4, 0.3, "embedding:a", "spectra")


def test_without_embeddings_the_terminal_has_the_bar_and_says_what_is_missing():
    fields = {"probe": "gradient_boosting"}
    rows = [row("statistics+spectra", 0.5, 0.4, 0.6, **fields), row("spectra", 0.9, 0.4, 0.6, **fields)]
    first, *_, last = answer_lines(rows)
    assert first.endswith("0.50 [0.40, 0.60]")
    assert "an answer needs some" in last


def test_metadata_is_named_where_it_wins_by_its_better_probe_and_only_there():
    lost = against("a", "metadata", -0.3, -0.5, -0.1, strongest=False, probe="ridge - gradient_boosting")
    weaker = against("a", "metadata", -0.2, -0.4, -0.05, strongest=False)
    won = against("a", "metadata", -0.3, -0.5, 0.1, strongest=False, target="rank")
    between = lost | {"metric": "r2", "value": -0.01, "low": -0.02, "high": -0.005}
    assert [one.difference for one in beaten_by_metadata([weaker, lost, won])] == [lost]
    told = metadata_sentence([weaker, lost, won, between])
    assert "within cells on unseen models, score (by 0.30 than a)" in str(told)
    assert "between cells on unseen models, score (by 0.01 than a)" in str(told)
    assert "rank" not in str(told)
    assert metadata_sentence([won]) is None


def test_the_terminal_has_a_line_for_each_comparison_and_says_which_splits_have_no_encoder():
    rows = [against("a", "markov", 0.1, 0.05, 0.2), row("markov", 0.1, 0.0, 0.2, split="new_size")]
    lines = list(answer_lines(rows))
    assert len(lines) == 5
    assert lines[1].split()[:2] == ["score", "in_distribution"]
    assert lines[1].endswith("+0.10 [+0.05, +0.20]  better")
    assert lines[-1].endswith("new_size.")


def test_above_chance_is_an_interval_above_zero_and_above_that_of_shuffled_labels():
    worse = against("a", "markov", -0.1, -0.2, -0.05)
    reads, control = row("embedding:a", 0.3, 0.1, 0.5), row("shuffled", 0.0, -0.1, 0.05)
    assert above_chance([worse, reads, control]) == [reads]
    assert comparisons([worse, reads, control])[0].above_chance
    for other in (control | {"high": 0.2}, control | {"target": "rank"}):
        assert above_chance([worse, reads, other]) == ([reads] if other["target"] == "rank" else [])
    for changed in (reads | {"low": -0.1}, reads | {"low": None}, reads | {"metric": "accuracy"}):
        assert above_chance([worse, changed, control]) == []
    beside = reads | {"features": "embedding:a + statistics"}
    assert above_chance([worse, beside, row("statistics", 0.3, 0.1, 0.5), control]) == []
    assert not comparisons([worse, beside, control])[0].above_chance


def test_the_answer_names_what_is_read_above_chance_only_where_no_baseline_is_beaten():
    reads, control = row("embedding:a", 0.3, 0.1, 0.5), row("shuffled", 0.0, -0.1, 0.05)
    worse, better = against("a", "markov", -0.1, -0.2, -0.05), against("a", "markov", 0.1, 0.05, 0.2)
    assert chance_sentence([worse, reads, control]) == (
        "No baseline is beaten, but more than shuffled labels would leave is read: a score on unseen models "
        "(within-cell R2 0.30 [0.10, 0.50])."
    )
    assert chance_sentence([worse, reads, control]) in list(answer_lines([worse, reads, control]))
    assert chance_sentence([better, reads, control]) is None
    assert chance_sentence([worse, reads | {"low": 0.0}, control]) is None
