"""The travelling wave: an ideal observer reads it from a whole sequence, and not from a few steps."""

import math

import numpy as np
import pytest
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.travelling_wave import TravellingWave


def observed(x):
    """Class (sequences,) of the lag under which the channels of x (time, sequences, channel) add up to most power."""
    spectrum = np.fft.rfft(x, axis=0)
    frequency = np.fft.rfftfreq(len(x))
    spectrum = spectrum[(frequency > 0.008) & (frequency < 0.055)]
    powers = [
        np.abs((spectrum * np.exp(-1j * (c - 2) * math.pi / 4 * np.arange(6))).sum(-1)).max(0) for c in range(5)
    ]
    return np.argmax(powers, axis=0)


def test_the_wave_is_read_from_a_long_sequence_and_not_from_a_short_one():
    right = {}
    for num_steps in (1000, 50):
        batch = TravellingWave(num_steps=1000).sample({}, Streams(0, ["a"], "train"), 200, "test")
        found = observed(batch.x[0, :num_steps].numpy())
        right[num_steps] = (found == batch.target[0, 0].numpy()).mean()
    assert right[1000] > 0.99
    assert right[50] < 0.8


def test_no_channel_alone_and_no_single_step_tells_the_class():
    batch = TravellingWave(num_steps=50).sample({}, Streams(0, ["a"], "train"), 4000, "train")
    x, target = batch.x[0].double(), batch.target[0, 0]
    for c in range(5):
        ours = x[:, target == c]
        assert abs(ours.mean().item()) < 0.02
        assert abs(ours.var().item() - 4.125) < 0.1
    assert torch.bincount(target, minlength=5).min() > 700


def test_noise_outside_its_bounds_is_refused():
    with pytest.raises(ValueError, match=r"`deviation` \(=0.5\) must be from 1.5 to 2"):
        TravellingWave(deviation=0.5)
