"""Counting languages: the strings, what they determine, and the score that heeds their order."""

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from weightspace.rollout import Streams
from weightspace.store import open_zoo
from zoo_builder.build import build
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.shard import out_of_task
from zoo_builder.tasks.formal_language import EOS, FormalLanguage

LAPTOP = Path(__file__).parents[2] / "configs" / "zoo" / "formal-languages-laptop.yaml"
OFFSETS = list(itertools.product(range(-3, 3), repeat=3))


def strings(mb, mc, md, max_n=9, length=42):
    """Every string of a language by definition, BOS and EOS and padding included."""
    found = []
    for n in range(1, max_n + 1):
        blocks = [n, n + mb, n + mc, n + md]
        if min(blocks) >= 1 and sum(blocks) + 2 <= length:
            tokens = [0] + [1 + i for i, count in enumerate(blocks) for _ in range(count)]
            found.append(tuple(tokens + [5] * (length - len(tokens))))
    return found


def drawn(batch, model):
    """Tokens (string, time) of one model, put together from inputs and targets."""
    first = batch.x[model, :1].argmax(-1)
    return list(map(tuple, torch.cat([first, batch.target[model]]).T.tolist()))


def values_of(offsets):
    columns = torch.tensor(offsets, dtype=torch.float64).unbind(1)
    return dict(zip(("mb", "mc", "md"), columns, strict=True))


def test_every_one_of_the_216_languages_draws_all_its_strings_and_no_other():
    ids = [str(i) for i in range(216)]
    batch = FormalLanguage().sample(values_of(OFFSETS), Streams(0, ids, "t"), 150, "train")
    assert torch.equal(batch.x.sum(-1), torch.ones(216, 41, 150))
    assert torch.equal(batch.x[:, 1:].argmax(-1), batch.target[:, :-1])
    for model, offsets in enumerate(OFFSETS):
        assert set(drawn(batch, model)) == set(strings(*offsets)), offsets
    assert len({frozenset(strings(*offsets)) for offsets in OFFSETS}) == 216


def test_just_four_languages_lose_their_longest_string_to_the_length():
    short = [o for o in OFFSETS if len(strings(*o)) < len(strings(*o, length=100))]
    assert sorted(short) == sorted({*itertools.permutations((2, 2, 1)), (2, 2, 2)})


def test_strings_are_equally_likely():
    batch = FormalLanguage().sample({}, Streams(0, ["a"], "t"), 9000, "train")
    counts = Counter(drawn(batch, 0))
    assert len(counts) == 9
    # Four standard deviations of a binomial of 9,000 draws.
    assert max(abs(count - 1000) for count in counts.values()) < 4 * math.sqrt(9000 * 8 / 81)


def informed(batch, language):
    """Log-probabilities of the next token by one who knows the language, (1, time, string, token)."""
    outputs = torch.full((1, 41, batch.x.shape[2], 6), -60.0)
    for b, tokens in enumerate(drawn(batch, 0)):
        for t in range(41):
            follow = [s[t + 1] for s in language if s[: t + 1] == tokens[: t + 1]]
            for token, count in Counter(follow).items():
                outputs[0, t, b, token] = math.log(count / len(follow))
    return outputs


@pytest.mark.parametrize("offsets", [(0, 0, 0), (-3, 2, 1), (2, 2, 2)])
def test_who_knows_the_language_scores_one_at_the_least_possible_loss(offsets):
    language = strings(*offsets)
    task = FormalLanguage(**dict(zip(("mb", "mc", "md"), offsets, strict=True)))
    batch = task.sample({}, Streams(0, ["a"], "t"), 60, "test")
    outputs = informed(batch, language)
    assert task.score(outputs, batch).item() == 1
    # Every string costs ln K; the share of each string in the batch is left to chance.
    asked = sum(tokens.index(EOS) for tokens in drawn(batch, 0))
    assert task.loss(outputs, batch).item() == pytest.approx(60 * math.log(len(language)) / asked, rel=1e-5)


def test_one_wrong_symbol_after_the_first_b_costs_the_string_and_none_before_or_after_it_does():
    task = FormalLanguage(mb=1)
    batch = task.sample({}, Streams(0, ["a"], "t"), 12, "test")
    right = informed(batch, strings(1, 0, 0))
    tokens = drawn(batch, 0)
    for b in range(12):
        first_b, end = tokens[b].index(2), tokens[b].index(EOS)
        for t in range(41):
            outputs = right.clone()
            outputs[0, t, b] = torch.nn.functional.one_hot(torch.tensor((tokens[b][t + 1] + 3) % 6), 6).float()
            expected = 11 / 12 if first_b <= t < end else 1
            assert task.score(outputs, batch).item() == pytest.approx(expected), (b, t)


def test_the_right_symbols_in_the_wrong_order_do_not_count():
    task = FormalLanguage()
    batch = task.sample({}, Streams(0, ["a"], "t"), 20, "test")
    outputs = informed(batch, strings(0, 0, 0))
    # As often b and c as the language asks for, but exchanged.
    assert task.score(outputs[..., [0, 1, 3, 2, 4, 5]], batch).item() == 0


def test_repeating_the_last_token_scores_nothing_and_knowing_nothing_costs_ln_6():
    task = FormalLanguage()
    batch = task.sample(values_of([(0, 0, 0), (-3, 1, 2)]), Streams(0, ["a", "b"], "t"), 30, "test")
    assert task.score(batch.x, batch).tolist() == [0, 0]
    torch.testing.assert_close(task.loss(torch.zeros(2, 41, 30, 6), batch), torch.full((2,), math.log(6)))


def test_what_comes_after_the_end_has_no_part_in_loss_or_gradient():
    task = FormalLanguage(max_n=2)
    batch = task.sample({}, Streams(0, ["a"], "t"), 5, "train")
    outputs = torch.zeros(1, 41, 5, 6, requires_grad=True)
    task.loss(outputs, batch).sum().backward()
    for b, tokens in enumerate(drawn(batch, 0)):
        end = tokens.index(EOS)
        assert outputs.grad[0, :end, b].abs().min() > 0
        assert outputs.grad[0, end:, b].abs().max() == 0


@pytest.mark.parametrize("fields", [{"mb": 40}, {"mb": -9}, {"max_n": 0}, {"length": 5}])
def test_a_language_without_strings_is_refused(fields):
    with pytest.raises(ValueError, match="must be whole numbers that leave a string"):
        FormalLanguage(**fields)


def test_a_models_broken_offset_is_refused():
    with pytest.raises(ValueError, match=r"`mb` \(=0.5\)"):
        FormalLanguage().sample(values_of([(0, 0, 0), (0.5, 0, 0)]), Streams(0, ["a", "b"], "t"), 2, "train")


def cohort_of(**fields):
    recipe = {
        "families": [{"class": "GRU", "hidden_size": 3}],
        "tasks": [{"class": "FormalLanguage", **fields}],
        "learning": {"class": "BPTT", "num_updates": 1},
        "snapshots": [0],
        "models_per_cohort": 8,
    }
    (cohort,) = make_plan(read_recipe(recipe)).cohorts
    return cohort


def test_the_most_balanced_languages_are_out_of_distribution():
    cohort = cohort_of(mb={"integers": [-3, 2]}, mc={"integers": [-3, 2]}, md={"integers": [-3, 2]})
    found = out_of_task(cohort, values_of([*OFFSETS, (0, 0, 0)]), 0.25, 216)
    out = {offsets for offsets, split in zip(OFFSETS, found, strict=True) if split == "out"}
    assert out == {offsets for offsets in OFFSETS if sum(map(abs, offsets)) <= 2}
    assert len(out) == 25
    assert set(out_of_task(cohort, values_of(OFFSETS), 0, 216)) == {"in"}


@pytest.mark.parametrize(("mc", "split"), [(0, "out"), (3, "in")])
def test_offsets_that_all_models_share_count_too(mc, split):
    cohort = cohort_of(mb={"integers": [-1, 1]}, mc=mc)
    assert out_of_task(cohort, {"mb": torch.tensor([1.0, -1.0, 1.0])}, 0.25, 2) == [split] * 2
    assert out_of_task(cohort_of(mc=mc), {}, 0.25, 3) == [split] * 3


@pytest.mark.slow
def test_scores_of_the_laptop_preset_rise_from_snapshot_to_snapshot(tmp_path):
    recipe = {**read_recipe(LAPTOP), "models_per_cohort": 32, "labels": ["Performance"], "rollouts": None}
    build(recipe, tmp_path / "zoo", workers=1)
    table = open_zoo(tmp_path / "zoo").table
    means = table.group_by("step").aggregate([("score", "mean")]).sort_by("step")["score_mean"].to_pylist()
    assert means == sorted(means)
    assert means[0] < 0.05
    assert means[-1] > 0.7
