"""Waves on rings, against torch's circular convolution and the shift that they start as."""

import pytest
import torch
import torch.nn.functional as F

from weightspace.families.wave_rnn import WaveRNN
from weightspace.rollout import generator, native, rollout


def test_outputs_and_gradients_are_those_of_a_circular_convolution():
    family = WaveRNN(input_size=2, hidden_size=3, output_size=2, sites=5)
    params = family.spec.random_params(generator(0, "m", "params"))
    x = torch.randn(9, 4, 2, dtype=torch.float64, generator=generator(0, "m", "x"))
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    h, expected = torch.zeros(4, 3, 5, dtype=torch.float64), []
    for x_t in x:
        around = F.conv1d(F.pad(h, (1, 1), mode="circular"), leaves["kernel"], leaves["bias"])
        h = torch.relu(around + torch.einsum("csi,bi->bcs", leaves["weight_ih"], x_t))
        expected.append(torch.einsum("ocs,bcs->bo", leaves["weight_ho"], h) + leaves["bias_o"])
    expected = torch.stack(expected)
    found_leaves = {name: value[None].clone().requires_grad_() for name, value in params.items()}
    found = rollout(family, found_leaves, x[None]).outputs[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(found_leaves[name].grad[0], leaf.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sites", [3, 4, 7])
def test_what_enters_at_site_0_travels_round_the_ring_and_comes_back(sites):
    family = WaveRNN(input_size=1, hidden_size=2, output_size=1, sites=sites)
    params = family.init(generator(0, "m", "init"))
    state = {"h": torch.zeros(1, 2 * sites)}
    for step in range(2 * sites + 1):
        state = family.step(params, state, torch.full((1, 1), float(step == 0)), {})
        expected = torch.zeros(2, sites)
        expected[:, -step % sites] = 1
        assert torch.equal(state["h"].view(2, sites), expected)


def test_sites_moved_round_the_ring_compute_the_same_though_that_is_not_declared():
    family = WaveRNN(input_size=2, hidden_size=3, output_size=2, sites=5)
    params = {k: v[None] for k, v in family.spec.random_params(generator(0, "m", "params")).items()}
    x = torch.randn(1, 6, 3, 2, dtype=torch.float64, generator=generator(0, "m", "x"))
    moved = params | {"weight_ih": params["weight_ih"].roll(1, 2), "weight_ho": params["weight_ho"].roll(1, 3)}
    mirrored = {
        "weight_ih": params["weight_ih"].flip(2),
        "weight_ho": params["weight_ho"].flip(3),
        "kernel": params["kernel"].flip(3),
    }
    expected = rollout(family, params, x).outputs
    for same in (moved, params | mirrored):
        torch.testing.assert_close(rollout(family, same, x).outputs, expected, rtol=1e-12, atol=1e-12)


def test_rings_without_room_for_two_neighbours_are_refused():
    with pytest.raises(ValueError, match=r"`sites` \(=2\) of WaveRNN must be at least 3"):
        WaveRNN(input_size=1, hidden_size=2, output_size=1, sites=2)


def test_it_runs_in_c():
    assert native.why_not(WaveRNN(input_size=3, hidden_size=4, output_size=2, sites=8), torch.float32) is None
