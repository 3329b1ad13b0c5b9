"""N-parity and N-delayed-match, for one N and for many heads."""

import math

import pytest
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.n_delayed_match import NDelayedMatch
from zoo_builder.tasks.n_parity import NParity

IDS = ["a", "b", "c"]
BOTH = pytest.mark.parametrize("kind", [NParity, NDelayedMatch])


def several(*values):
    return torch.tensor(values, dtype=torch.float64)


def answer(kind, bits, n):
    """By definition, from the list of all bits."""
    last = bits[-n:]
    return sum(last) % 2 if kind is NParity else int(last[0] == last[-1])


@BOTH
def test_one_head_answers_for_each_models_own_n(kind):
    task = kind(max_n=6)
    batch = task.sample({"n": several(2, 4, 6)}, Streams(0, IDS, "t"), 40, "train")
    assert task.output_size == 2
    for m, n in enumerate((2, 4, 6)):
        for b in range(40):
            bits = batch.x[m, :, b, 0].int().tolist()
            assert batch.target[m, 0, b].tolist() == [answer(kind, bits, n)]


@BOTH
def test_many_heads_answer_for_every_n_up_to_the_models_own(kind):
    task = kind(max_n=6, heads="many")
    batch = task.sample({"n": several(2, 4, 6)}, Streams(0, IDS, "t"), 40, "train")
    assert task.output_size == 10
    for m, n in enumerate((2, 4, 6)):
        for b in range(40):
            bits = batch.x[m, :, b, 0].int().tolist()
            expected = [answer(kind, bits, own) for own in range(2, n + 1)] + [-1] * (6 - n)
            assert batch.target[m, 0, b].tolist() == expected


@BOTH
def test_one_head_and_many_see_the_same_sequences(kind):
    single, many = (
        kind(max_n=6, n=4, heads=h).sample({}, Streams(0, IDS, "t"), 9, "train") for h in ("single", "many")
    )
    assert torch.equal(single.x, many.x)
    assert torch.equal(single.target[..., 0], many.target[..., 2])


@BOTH
def test_the_loss_adds_up_over_heads_and_the_score_averages_over_them(kind):
    task = kind(max_n=5, heads="many")
    batch = task.sample({"n": several(2, 3, 5)}, Streams(0, IDS, "t"), 25, "test")
    outputs = torch.randn(3, task.num_steps, 25, 8, generator=torch.Generator().manual_seed(0))
    losses, scores = task.loss(outputs, batch), task.score(outputs, batch)
    for m, n in enumerate((2, 3, 5)):
        lost, right = 0.0, []
        for head in range(n - 1):
            no, yes = outputs[m, -1, :, 2 * head].tolist(), outputs[m, -1, :, 2 * head + 1].tolist()
            asked = batch.target[m, 0, :, head].tolist()
            lost += (
                sum(math.log1p(math.exp((u - v) * (2 * a - 1))) for u, v, a in zip(no, yes, asked, strict=True)) / 25
            )
            right += [(v > u) == bool(a) for u, v, a in zip(no, yes, asked, strict=True)]
        assert losses[m].item() == pytest.approx(lost, rel=1e-5)
        assert scores[m].item() == pytest.approx(sum(right) / len(right))


@BOTH
def test_no_answer_costs_ln_2_for_each_head_that_is_asked(kind):
    task = kind(max_n=5, heads="many")
    batch = task.sample({"n": several(2, 3, 5)}, Streams(0, IDS, "t"), 7, "test")
    losses = task.loss(torch.zeros(3, task.num_steps, 7, 8), batch)
    torch.testing.assert_close(losses, torch.tensor([1.0, 2.0, 4.0]) * math.log(2))


@BOTH
def test_a_head_that_is_not_asked_learns_nothing(kind):
    task = kind(max_n=5, n=3, heads="many")
    batch = task.sample({}, Streams(0, IDS, "t"), 7, "train")
    outputs = torch.zeros(3, task.num_steps, 7, 8, requires_grad=True)
    task.loss(outputs, batch).sum().backward()
    assert outputs.grad[:, -1, :, :4].abs().min() > 0
    assert outputs.grad[:, -1, :, 4:].abs().max() == 0
    assert outputs.grad[:, :-1].abs().max() == 0


def test_always_even_is_right_more_than_half_the_time_for_even_n_only():
    task, count = NParity(max_n=5), 20_000
    batch = task.sample({"n": several(2, 3, 4)}, Streams(0, IDS, "t"), count, "test")
    outputs = torch.zeros(3, task.num_steps, count, 2)
    outputs[..., 0] = 1
    expected = [1 / 2 + 1 / 6, 1 / 2, 1 / 2 + 1 / 10]
    # Four standard errors of the mean of so many coins.
    assert task.score(outputs, batch).tolist() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(count))


def test_matches_and_misses_are_equally_frequent():
    task, count = NDelayedMatch(max_n=5), 20_000
    share = task.sample({"n": several(2, 3, 5)}, Streams(0, IDS, "t"), count, "test").target.double().mean((1, 2, 3))
    assert share.tolist() == pytest.approx([0.5] * 3, abs=4 * 0.5 / math.sqrt(count))


def test_sequences_are_as_long_as_the_models_n_says():
    task = NDelayedMatch(max_n=6)
    bits = task.sample({"n": several(2, 4, 6)}, Streams(0, IDS, "t"), 20_000, "train").x[..., 0]
    for m, n in enumerate((2, 4, 6)):
        # A step heard by a share s of the sequences has ones in s / 2 of them.
        heard = 2 * bits[m].mean(1).flip(0)
        expected = [min(1.0, max(0.0, (4 * n + 2 - t) / (3 * n))) for t in range(1, 26)]
        assert heard.tolist() == pytest.approx(expected, abs=0.03)
        assert bits[m, : 25 - (4 * n + 1)].sum() == 0


@BOTH
@pytest.mark.parametrize("fields", [{"n": 1}, {"n": 11}, {"heads": "two"}, {"window": 0}])
def test_what_cannot_be_asked_is_refused(kind, fields):
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}`"):
        kind(**fields)


@BOTH
def test_a_window_of_heads_answers_for_the_last_few_n_in_order(kind):
    task = kind(max_n=6, heads="sliding", window=3)
    batch = task.sample({"n": several(2, 4, 6)}, Streams(0, IDS, "t"), 40, "train")
    assert task.output_size == 6
    for m, asked in enumerate(([2], [2, 3, 4], [4, 5, 6])):
        for b in range(40):
            bits = batch.x[m, :, b, 0].int().tolist()
            expected = [answer(kind, bits, n) for n in asked] + [-1] * (3 - len(asked))
            assert batch.target[m, 0, b].tolist() == expected


@BOTH
def test_a_window_is_one_head_or_many_at_its_ends(kind):
    def drawn(**fields):
        return kind(max_n=6, **fields).sample({"n": several(2, 4, 6)}, Streams(0, IDS, "t"), 9, "train").target

    assert torch.equal(drawn(heads="sliding", window=1), drawn(heads="single"))
    assert torch.equal(drawn(heads="sliding", window=99), drawn(heads="many"))


@BOTH
@pytest.mark.parametrize("heads", ["single", "many", "sliding"])
def test_mastery_is_the_lesser_of_the_mean_over_heads_and_the_newest_head(kind, heads):
    task = kind(max_n=6, heads=heads, window=3)
    batch = task.sample({"n": several(2, 4, 6)}, Streams(0, IDS, "t"), 25, "test")
    outputs = torch.randn(3, task.num_steps, 25, task.output_size, generator=torch.Generator().manual_seed(0))
    by_head, found = task.score_by_head(outputs, batch), task.mastery(outputs, batch)
    for m in range(3):
        shares = []
        for head in range(task.num_heads):
            wanted = batch.target[m, 0, :, head].tolist()
            answers = (outputs[m, -1, :, 2 * head + 1] > outputs[m, -1, :, 2 * head]).int().tolist()
            share = sum(a == w for a, w in zip(answers, wanted, strict=True)) / 25 if wanted[0] >= 0 else math.nan
            assert by_head[m, head].item() == pytest.approx(share, nan_ok=True)
            shares += [share] if wanted[0] >= 0 else []
        assert found[m].item() == pytest.approx(min(sum(shares) / len(shares), shares[-1]))
    outputs[1, -1, 0, 0] = torch.nan
    assert task.mastery(outputs, batch).isnan().tolist() == [False, True, False]
