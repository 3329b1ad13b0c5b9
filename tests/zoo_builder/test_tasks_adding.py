"""The adding problem against its closed forms."""

import pytest
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.adding import Adding


@pytest.mark.parametrize("num_steps", [2, 7, 20])
def test_one_number_of_each_half_is_marked_and_their_sum_is_asked_for(num_steps):
    batch = Adding(num_steps=num_steps).sample({}, Streams(0, ["a", "b"], "t"), 300, "train")
    numbers, marks = batch.x.unbind(-1)
    half = num_steps // 2
    assert torch.equal(marks[:, :half].sum(1), torch.ones(2, 300))
    assert torch.equal(marks[:, half:].sum(1), torch.ones(2, 300))
    assert (marks.sum((0, 2)) > 0).all()
    assert 0 <= numbers.min() <= numbers.max() < 1
    for m in range(2):
        for b in range(20):
            expected = sum(numbers[m, t, b].item() for t in range(num_steps) if marks[m, t, b])
            assert batch.target[m, 0, b, 0].item() == pytest.approx(expected, abs=1e-6)


def test_the_best_constant_answer_costs_a_sixth_and_explains_nothing():
    task, count = Adding(), 20_000
    batch = task.sample({}, Streams(0, ["a", "b"], "t"), count, "test")
    outputs = torch.ones(2, 20, count, 1)
    # Four standard errors: (U + V - 1)^2 has variance 1/15 - 1/36.
    allowed = 4 * (7 / 180 / count) ** 0.5
    assert (task.loss(outputs, batch) - 1 / 6).abs().max() < allowed
    assert task.score(outputs, batch).abs().max() < 1e-3


def test_a_sequence_too_short_for_two_numbers_is_refused():
    with pytest.raises(ValueError, match="`num_steps` \\(=1\\) must be at least 2"):
        Adding(num_steps=1)
