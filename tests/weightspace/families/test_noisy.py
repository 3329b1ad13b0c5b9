"""Noisy networks against their equations, trial by trial, and the symmetry that noise leaves."""

import math

import pytest
import torch

from weightspace.encoders.responses import starts_of
from weightspace.families.noisy_gru import NoisyGRU
from weightspace.families.noisy_rnn import NoisyRNN
from weightspace.rollout import Streams, generator, rollout
from weightspace.rollout.noise import draw_noise

SIZES = {"input_size": 2, "hidden_size": 5, "output_size": 3, "start_size": 4, "alpha": 0.3, "noise": 0.2}


def rates(family, w, r, x, eta):
    """One step of one trial, by the equations."""
    if isinstance(family, NoisyRNN):
        change = torch.relu(w["weight_hh"] @ r + w["weight_ih"] @ x) - r
    else:
        g, z = (torch.sigmoid(w["weight_hh"][k] @ r + w["weight_ih"][k] @ x) for k in (0, 1))
        change = (1 - z) * (torch.tanh(w["weight_hh"][2] @ (g * r) + w["weight_ih"][2] @ x) - r)
    return r + 0.3 * change + 0.2 * eta


@pytest.mark.parametrize("kind", [NoisyRNN, NoisyGRU])
@pytest.mark.parametrize("method", ["sequential", "stacked", "native"])
def test_outputs_are_those_of_the_equations(kind, method):
    family = kind(**SIZES)
    weights = family.spec.random_params(generator(0, "m", "params"))
    draws = [torch.randn(shape, dtype=torch.float64, generator=generator(0, "m", str(shape))) for shape in
             ((1, 6, 2, 2), (1, 2, 4), (1, 6, 2, 5))]  # fmt: skip
    x, start, eta = draws
    params = {name: value[None] for name, value in weights.items()}
    outputs = rollout(family, params, x, start, noise={"eta": eta}, method=method).outputs
    for trial in range(2):
        r = weights["weight_sh"] @ start[0, trial]
        for t in range(6):
            r = rates(family, weights, r, x[0, t, trial], eta[0, t, trial])
            torch.testing.assert_close(outputs[0, t, trial], weights["weight_ho"] @ r, rtol=1e-12, atol=1e-12)


def test_noise_has_the_declared_deviation_and_zero_mean():
    family = NoisyRNN(input_size=1, hidden_size=4, output_size=4, alpha=1.0, noise=0.1)
    params = {name: torch.zeros(1, *family.spec.shape(name)) for name in family.spec.tensors}
    params["weight_ho"][0] = torch.eye(4)
    noise = draw_noise(family.spec, Streams(0, ["m"], "noise"), 50, 200)
    outputs = rollout(family, params, torch.zeros(1, 50, 200, 1), noise=noise).outputs
    assert outputs.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(outputs.mean().item()) < 2e-3


def test_rates_may_be_rescaled_only_without_noise_and_signs_of_gated_units_always():
    assert NoisyRNN(**SIZES).spec.gauges == {}
    assert set(NoisyRNN(**{**SIZES, "noise": 0.0}).spec.gauges) == {"scale"}
    assert set(NoisyGRU(**SIZES).spec.gauges) == {"sign"}
    assert NoisyRNN(**{**SIZES, "noise": 0.0}).spec.noise == {}


def test_without_a_start_it_begins_at_rest():
    family = NoisyRNN(**SIZES)
    params = family.spec.random_params(generator(0, "m", "params"))
    assert not family.initial_state(params, torch.zeros(3, 0, dtype=torch.float64))["r"].any()


def test_queries_start_from_different_waves_and_pairs_from_the_same_one():
    starts = starts_of(NoisyRNN(**SIZES), 6)
    assert torch.equal(starts[:3], starts[3:])
    assert starts[1, 2].item() == pytest.approx(math.cos(math.pi * 2.5 * 2 / 4))
    assert torch.linalg.matrix_rank(starts[:3]) == 3


@pytest.mark.parametrize("fields", [{"alpha": 0.0}, {"alpha": 1.1}, {"noise": -0.1}])
def test_steps_and_noise_that_make_no_sense_are_refused(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"`{name}`"):
        NoisyRNN(**{**SIZES, **fields})
