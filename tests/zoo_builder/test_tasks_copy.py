"""The copy task: what is shown when, and what is asked for."""

import pytest
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.copy import Copy


def test_symbols_then_blanks_then_the_cue_then_the_answers():
    task = Copy(num_symbols=3, length=2, max_delay=4, delay=1)
    delays = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64)
    batch = task.sample({"delay": delays}, Streams(0, ["a", "b", "c"], "t"), 30, "train")
    blank, cue = 3, 4
    tokens = batch.x.argmax(-1)
    assert torch.equal(batch.x.sum(-1), torch.ones(3, 8, 30))
    for m, delay in enumerate((1, 3, 4)):
        for b in range(30):
            shown = batch.target[m, :, b].tolist()
            expected = [blank] * (4 - delay) + shown + [blank] * (delay - 1) + [cue] + [blank] * 2
            assert tokens[m, :, b].tolist() == expected


def test_symbols_are_drawn_uniformly():
    count = Copy(num_symbols=4, length=5).sample({}, Streams(0, ["a"], "t"), 4000, "train").target.flatten().bincount()
    # Four standard deviations of a binomial of 20,000 draws.
    assert (count - 5000).abs().max() < 4 * (20_000 * 3 / 16) ** 0.5


def test_a_constant_answer_is_right_by_chance():
    task = Copy(num_symbols=4)
    batch = task.sample({}, Streams(0, ["a"], "t"), 4000, "test")
    outputs = torch.zeros(1, task.num_steps, 4000, 4)
    outputs[..., 2] = 1
    assert task.score(outputs, batch).item() == pytest.approx(1 / 4, abs=4 * (3 / 16 / 20_000) ** 0.5)


@pytest.mark.parametrize("fields", [{"delay": 0}, {"delay": 21}, {"num_symbols": 1}, {"length": 0}])
def test_what_cannot_be_copied_is_refused(fields):
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}`"):
        Copy(**fields)


def test_a_models_delay_beyond_the_longest_is_refused():
    with pytest.raises(ValueError, match=r"`delay` \(=2\.5\) must be a whole number from 1 to 20"):
        Copy().sample({"delay": torch.tensor([3, 2.5])}, Streams(0, ["a", "b"], "t"), 2, "train")
