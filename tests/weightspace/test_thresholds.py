"""Which inputs the tests compare spiking networks on: those on which no rounding decides whether a neuron fires."""

import torch

from tests.weightspace.thresholds import decided, undecided
from weightspace.families.elman import Elman
from weightspace.families.lif import LIF
from weightspace.rollout import generator, rollout

FAMILY = LIF(input_size=1, hidden_size=1, output_size=1)
ONE, ZERO = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
PARAMS = {"weight_ih": ONE, "weight_hh": ZERO, "bias": ZERO[0], "tau": 5 * ONE[0], "weight_ho": ONE, "bias_o": ZERO[0]}


def test_rounding_decides_on_a_potential_at_its_threshold_and_such_sequences_are_found():
    x = torch.tensor([1 + 1e-9, 2.0, 0.5], dtype=torch.float64).reshape(1, 1, 3, 1)
    narrow = {name: value.float() for name, value in PARAMS.items()}
    exact, rounded = rollout(FAMILY, PARAMS, x).outputs, rollout(FAMILY, narrow, x.float()).outputs
    assert exact.flatten().tolist() == [1, 1, 0]
    assert rounded.flatten().tolist() == [0, 1, 0]
    assert undecided(FAMILY, PARAMS, x, 2e-5).tolist() == [True, False, False]
    assert undecided(FAMILY, PARAMS, x, 1e-10).tolist() == [False, False, False]


def test_undecided_sequences_are_drawn_again_and_no_others():
    x = torch.tensor([1 + 1e-9, 2.0, 0.5], dtype=torch.float64).reshape(1, 1, 3, 1)
    state = {"v": torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).reshape(1, 3, 1), "trace": ZERO.expand(1, 3, 1)}
    new, initial = decided(FAMILY, PARAMS, x, 2e-5, state)
    assert (new != x).flatten().tolist() == [True, False, True]
    assert (initial["v"] != state["v"]).flatten().tolist() == [True, False, True]
    assert not undecided(FAMILY, PARAMS, new, 2e-5, initial).any()


def test_families_without_spikes_keep_their_inputs():
    family = Elman(input_size=2, hidden_size=3, output_size=1)
    params = {name: value[None] for name, value in family.spec.random_params(generator(0, "m", "params")).items()}
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64, generator=generator(0, "m", "x"))
    assert decided(family, params, x, 1.0)[0] is x
