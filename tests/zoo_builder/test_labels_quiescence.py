"""Quiescent states against closed forms of linear noise and decay."""

import math

import pytest
import torch

from weightspace.families.elman import Elman
from weightspace.families.noisy_rnn import NoisyRNN
from weightspace.rollout import generator
from zoo_builder import labels
from zoo_builder.labels.quiescence import speed, variance_within
from zoo_builder.members import Members

IDS = [str(i) for i in range(24)]


def measured(family, params):
    stacked = {name: value.expand(len(IDS), *value.shape).contiguous() for name, value in params.items()}
    return labels.measure(["Quiescence"], family, stacked, None, Members(0, IDS))


def test_units_that_only_leak_sample_twice_the_variance_of_their_noise():
    family = NoisyRNN(input_size=1, hidden_size=4, output_size=1, alpha=0.5, noise=0.1)
    params = {name: torch.zeros(family.spec.shape(name)) for name in family.spec.tensors}
    columns = measured(family, params)
    # Without input and weights the states awake are the same process, at half the variance.
    assert columns["quiescent_variance"].mean().item() == pytest.approx(2, rel=0.1)
    assert columns["quiescent_speed"].mean().item() == pytest.approx(math.sqrt(2), rel=0.05)
    assert columns["quiescent_participation_ratio"].mean().item() == pytest.approx(1, rel=0.1)


def test_a_network_that_forgets_stands_still_and_one_without_input_weights_has_no_numbers():
    family = Elman(input_size=1, hidden_size=4, output_size=1)
    params = {name: value.float() for name, value in family.spec.random_params(generator(0, "m", "p")).items()}
    small = {name: value * (0.1 if name == "weight_hh.0" else 1) for name, value in params.items()}
    columns = measured(family, small)
    assert columns["quiescent_variance"].max() < 1e-12
    assert columns["quiescent_speed"].max() < 1e-12
    # The covariance of states at rest is rounding.
    assert columns["quiescent_participation_ratio"].isnan().all()
    nothing = {name: torch.zeros_like(value) for name, value in params.items()}
    assert all(column.isnan().all() for column in measured(family, nothing).values())


def test_a_rotation_never_rests():
    angle, states = 0.3, []
    for t in range(210):
        states.append([math.cos(angle * t), math.sin(angle * t)])
    circle = torch.tensor(states, dtype=torch.float64)[None, :, None]
    assert variance_within(circle).item() == pytest.approx(1, abs=0.02)
    assert speed(circle).item() == pytest.approx(2 * math.sin(angle / 2))
