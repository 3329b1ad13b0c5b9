"""Impulse responses against closed forms and rollouts one after another."""

import math

import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.gru import GRU
from weightspace.rollout import rollout
from zoo_builder import labels
from zoo_builder.learning.untrained import Untrained
from zoo_builder.members import Members

IDS = ["a", "b", "c"]
SIGNED, ENERGY = "signed_response_lag_1", "log_response_energy_lag_3"


def params_of(family, gain=1.0):
    learned = Untrained(gain=gain).learn(family, None, Members(0, IDS), [0])
    return {name: tensor[:, 0] for name, tensor in learned.params.items()}


def test_responses_of_a_linear_network_are_c_a_to_the_lag_b():
    family = Linear(input_size=2, hidden_size=3, output_size=2)
    params = {name: value.double() for name, value in params_of(family).items()}
    measured = labels.measure(["LaggedResponse"], family, params, None, Members(0, IDS))
    a, b, c = params["a"], params["b"], params["c"]
    torch.testing.assert_close(measured[SIGNED], (c @ a @ b).mean((1, 2)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured[ENERGY], (c @ a @ a @ a @ b).square().mean((1, 2)).log(), rtol=1e-9, atol=0)


def test_responses_of_a_gru_are_half_the_difference_of_two_rollouts():
    family = GRU(input_size=2, hidden_size=4, output_size=3)
    params = {name: value.double() for name, value in params_of(family, 2.0).items()}
    measured = labels.measure(["LaggedResponse"], family, params, None, Members(0, IDS))
    responses = torch.zeros(3, 4, 2, 3, dtype=torch.float64)
    for number in range(2):
        x = torch.zeros(3, 52, 1, 2, dtype=torch.float64)
        x[:, 48, :, number] = 1
        up, down = (rollout(family, params, sign * x).outputs[:, 48:, 0] for sign in (1, -1))
        responses[:, :, number] = (up - down) / 2
    torch.testing.assert_close(measured[SIGNED], responses[:, 1].mean((1, 2)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured[ENERGY], responses[:, 3].square().mean((1, 2)).log(), rtol=1e-9, atol=1e-12)


def test_the_sign_of_the_read_out_is_that_of_the_response():
    family = GRU(input_size=1, hidden_size=4, output_size=1)
    params = params_of(family)
    measured = labels.measure(["LaggedResponse"], family, params, None, Members(0, IDS))
    flipped = params | {"weight_ho": -params["weight_ho"]}
    turned = labels.measure(["LaggedResponse"], family, flipped, None, Members(0, IDS))
    torch.testing.assert_close(turned[SIGNED], -measured[SIGNED], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(turned[ENERGY], measured[ENERGY], rtol=1e-9, atol=1e-12)


def test_fresh_params_times_a_gain_and_a_gain_that_makes_no_sense():
    family = GRU(input_size=1, hidden_size=4, output_size=1)
    once, twice = params_of(family), params_of(family, 2.0)
    assert all(torch.equal(2 * once[name], twice[name]) for name in once)
    assert family.init(torch.Generator()).keys() == once.keys()
    assert once["weight_hh.0"].abs().max() <= 0.5
    with pytest.raises(ValueError, match=r"`gain` \(=0\) must be above 0"):
        Untrained(gain=0)
    with pytest.raises(ValueError, match="finite"):
        Untrained(gain=math.inf)
