"""Chirps against scipy, trial by trial, and against listeners that know what to listen for."""

import numpy as np
import pytest
import scipy.signal
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.chirps import Chirps

NAMES = ["a", "b"]


@pytest.mark.parametrize(("num_steps", "length"), [(16, 4), (41, 10), (128, 16)])
def test_each_trial_is_two_chirps_of_scipy_in_noise(num_steps, length):
    task = Chirps(num_steps=num_steps, chirp_steps=length)
    batch = task.sample({}, Streams(0, NAMES, "t"), 30, "train")
    again, quarter = Streams(0, NAMES, "t"), num_steps // 4
    rising, onset = again.integers(2, 2, 30), again.integers(quarter - length + 1, 2, 30)
    phase, noise = again.uniform(2, 30, dtype=torch.float64), again.normal(num_steps, 30)
    for m in range(2):
        for b in range(30):
            expected = 0.2 * noise[m, :, b].double().numpy()
            for which, begins in ((0, 0), (1, num_steps - quarter)):
                ends = (1 / 16, 1 / 4) if rising[m, which, b] else (1 / 4, 1 / 16)
                # A sine is a cosine a quarter of a cycle later.
                degrees = 360 * phase[m, which, b].item() - 90
                wave = scipy.signal.chirp(np.arange(length) + 0.5, ends[0], length, ends[1], phi=degrees)
                first = begins + int(onset[m, which, b])
                assert first + length <= (quarter if which == 0 else num_steps)
                expected[first : first + length] += wave
            np.testing.assert_allclose(batch.x[m, :, b, 0].numpy(), expected, atol=1e-6)
            assert batch.target[m, 0, b] == 2 * rising[m, 0, b] + rising[m, 1, b]


def heard(x, length):
    """Whether the loudest chirp of sequences (sequence, time) rises: the larger of all correlations at any onset."""
    loudest = []
    for ends in ((1 / 4, 1 / 16), (1 / 16, 1 / 4)):
        waves = [scipy.signal.chirp(np.arange(length) + 0.5, ends[0], length, ends[1], phi=phi) for phi in (0, 90)]
        windows = np.lib.stride_tricks.sliding_window_view(x, length, axis=1)
        loudest.append(sum((windows @ wave) ** 2 for wave in waves).max(1))
    return (loudest[1] > loudest[0]).astype(int)


def test_matched_filters_answer_and_one_that_has_forgotten_the_first_quarter_is_right_half_the_time():
    task, count = Chirps(deviation=0.3), 4000
    batch = task.sample({}, Streams(1, ["a"], "t"), count, "test")
    x, target = batch.x[0, :, :, 0].T.numpy(), batch.target[0, 0]
    first, last = (torch.from_numpy(heard(part, 16)) for part in (x[:, :32], x[:, -32:]))

    def scored(answers):
        outputs = torch.zeros(1, task.num_steps, count, 4)
        outputs[0, -1] = torch.nn.functional.one_hot(answers, 4).float()
        return task.score(outputs, batch).item()

    assert scored(2 * first + last) > 0.97
    # Four standard errors of a fair coin.
    assert abs(scored(last) - 0.5 * scored(2 * (target // 2) + last)) < 4 * 0.5 / count**0.5
    assert target.bincount().min() > count / 4 - 4 * (count * 3 / 16) ** 0.5


def test_rising_and_falling_chirps_have_the_same_power_at_every_frequency():
    phases, powers = np.linspace(0, 360, 16, endpoint=False), []
    for start, end in ((1 / 16, 1 / 4), (1 / 4, 1 / 16)):
        waves = np.stack([scipy.signal.chirp(np.arange(16) + 0.5, start, 16, end, phi=phi) for phi in phases])
        powers.append((np.abs(np.fft.rfft(waves, axis=1)) ** 2).mean(0))
    np.testing.assert_allclose(powers[0], powers[1], rtol=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 60}, r"`chirp_steps` \(=16\) must be at most 15, a quarter of `num_steps` \(=60\)"),
        ({"num_steps": 15, "chirp_steps": 4}, r"`num_steps` \(=15\) must be at least 16"),
        ({"deviation": 0.5}, r"`deviation` \(=0.5\) must be from 0 to 0.3"),
    ],
)
def test_sequences_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Chirps(**fields)
