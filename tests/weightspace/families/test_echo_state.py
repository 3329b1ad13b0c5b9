"""The echo-state network against a plain loop, its reservoir and its read-out."""

import numpy as np
import pytest
import torch

from weightspace.families.echo_state import EchoState
from weightspace.rollout import generator, rollout


@pytest.mark.parametrize("family", EchoState.examples(), ids=str)
def test_outputs_equal_those_of_a_plain_loop(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    x = torch.randn(1, 9, 1, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    outputs = rollout(family, {k: v[None] for k, v in params.items()}, x).outputs[0, :, 0].numpy()
    p, h, expected = {k: v.numpy() for k, v in params.items()}, np.zeros(family.hidden_size), []
    for x_t in x[0, :, 0].numpy():
        drive = p["weight_hh"] @ h + p["weight_ih"] @ x_t + p["bias"]
        h = (1 - family.leak) * h + family.leak * np.tanh(drive)
        expected.append(p["weight_ho"] @ h + p["bias_o"])
    np.testing.assert_allclose(outputs, np.stack(expected), rtol=1e-12, atol=1e-12)


def test_only_the_read_out_is_trained():
    spec = EchoState(input_size=2, hidden_size=7, output_size=3).spec
    assert spec.trained == ("weight_ho", "bias_o")
    assert spec.num_parameters == 3 * 7 + 3


@pytest.mark.parametrize("radius", [0.5, 1.2])
def test_a_fresh_reservoir_has_the_spectral_radius_asked_for(radius):
    family = EchoState(input_size=1, hidden_size=40, output_size=1, spectral_radius=radius, input_scale=0.3)
    params = family.init(generator(0, "m", "init"))
    assert np.abs(np.linalg.eigvals(params["weight_hh"].numpy())).max() == pytest.approx(radius, rel=1e-5)
    assert 0.25 < params["weight_ih"].abs().max() <= 0.3


def test_a_reservoir_below_radius_one_half_forgets_its_first_state():
    family = EchoState(input_size=1, hidden_size=20, output_size=1, spectral_radius=0.4)
    params = {k: v.double()[None] for k, v in family.init(generator(0, "m", "init")).items()}
    x = torch.randn(1, 60, 1, 1, dtype=torch.float64, generator=generator(0, "m", "x"))
    ends = [
        rollout(family, params, x, state={"h": torch.full((1, 1, 20), value, dtype=torch.float64)}).outputs[0, -1]
        for value in (-1.0, 1.0)
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("option", "value"), [("leak", 0.0), ("leak", 1.5), ("spectral_radius", 0.0), ("input_scale", -1.0)]
)
def test_options_without_meaning_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"`{option}` \(={value}\)"):
        EchoState(input_size=1, hidden_size=2, output_size=1, **{option: value})
