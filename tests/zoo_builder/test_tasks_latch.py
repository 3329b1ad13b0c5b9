"""The latching problem: what is shown, what is asked, and how loud the noise is."""

import pytest
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.latch import Latch

STREAMS = [str(i) for i in range(4)]


def test_the_sign_of_the_first_input_is_the_answer_and_the_rest_is_noise():
    batch = Latch(num_steps=9, deviation=0.2).sample({}, Streams(0, STREAMS, "train"), 2000, "train")
    first, rest = batch.x[:, 0, :, 0], batch.x[:, 1:]
    assert torch.equal(first, torch.where(batch.target[:, 0] == 1, 1.0, -1.0))
    assert abs(first.mean().item()) < 0.05
    assert abs(rest.std().item() - 0.2) < 0.003
    assert abs((rest * first[:, None, :, None]).mean().item()) < 0.003
    assert batch.target.shape == (4, 1, 2000)


def test_noise_that_leaves_the_declared_range_is_refused():
    with pytest.raises(ValueError, match=r"`deviation` \(=0.5\) must be from 0 to 0.35"):
        Latch(deviation=0.5)
