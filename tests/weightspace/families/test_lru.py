"""The linear recurrent unit against its convolution in complex numbers."""

import numpy as np
import pytest
import torch

from weightspace.families.lru import LRU
from weightspace.rollout import generator, rollout

FAMILY = LRU(input_size=3, hidden_size=5, output_size=2)


def convolution(lam: np.ndarray, used: dict, x: np.ndarray) -> np.ndarray:
    """Outputs (time, output) = Re(sum_k C lambda^k B x_(t-k)) + b_o of inputs (time, input)."""
    b = used["weight_ih"][0].numpy() + 1j * used["weight_ih"][1].numpy()
    c = used["weight_ho"][0].numpy() + 1j * used["weight_ho"][1].numpy()
    outputs = np.zeros((len(x), c.shape[0]))
    for t in range(len(x)):
        outputs[t] = sum((c @ (lam**k * (b @ x[t - k]))).real for k in range(t + 1)) + used["bias_o"].numpy()
    return outputs


def drawn() -> tuple[dict, torch.Tensor]:
    params = FAMILY.spec.random_params(generator(0, "m", "params"))
    return params, torch.randn(1, 9, 1, 3, dtype=torch.float64, generator=generator(0, "m", "x"))


def test_outputs_equal_the_convolution():
    params, x = drawn()
    outputs = rollout(FAMILY, {k: v[None] for k, v in params.items()}, x).outputs[0, :, 0].numpy()
    lam = np.exp(-np.exp(params["nu"].numpy()) + 1j * np.exp(params["theta"].numpy()))
    scaled = params | {"weight_ih": params["weight_ih"] * torch.exp(params["gamma"])[:, None]}
    np.testing.assert_allclose(outputs, convolution(lam, scaled, x[0, :, 0].numpy()), rtol=1e-11, atol=1e-11)


def test_effective_params_and_their_declared_moves_compute_the_same():
    params, x = drawn()
    outputs = rollout(FAMILY, {k: v[None] for k, v in params.items()}, x).outputs[0, :, 0].numpy()
    used, spec = FAMILY.effective(params), FAMILY.effective_spec
    assert set(spec.gauges) == {"scale", "conjugate"}
    for moved in (used, spec.act(spec.random_element(generator(0, "m", "move")), used)):
        lam = torch.complex(*moved["lambda"]).numpy()
        np.testing.assert_allclose(outputs, convolution(lam, moved, x[0, :, 0].numpy()), rtol=1e-11, atol=1e-11)


def test_what_effective_params_leave_out_does_not_act():
    params, _ = drawn()
    other = params | {"gamma": params["gamma"] + 0.5, "weight_ih": params["weight_ih"] * np.exp(-0.5)}
    other["theta"] = torch.log(torch.exp(params["theta"]) + 2 * torch.pi)
    for name, value in FAMILY.effective(other).items():
        torch.testing.assert_close(value, FAMILY.effective(params)[name], rtol=1e-12, atol=1e-12)


def test_fresh_modes_fill_their_ring_with_unit_gain():
    family = LRU(input_size=1, hidden_size=4000, output_size=1, min_radius=0.6, max_radius=0.9, max_angle=1.0)
    params = family.init(generator(0, "m", "init"))
    lam = torch.complex(*family.effective(params)["lambda"])
    assert 0.6 - 1e-5 <= lam.abs().min() < 0.601
    assert 0.899 < lam.abs().max() <= 0.9 + 1e-5
    # Uniform on the ring: the squared radius is uniform.
    assert lam.abs().square().mean().item() == pytest.approx((0.36 + 0.81) / 2, abs=0.005)
    assert lam.angle().mean().item() == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(torch.exp(params["gamma"]), torch.sqrt(1 - lam.abs() ** 2), rtol=1e-4, atol=1e-5)
    assert params["weight_ih"].square().sum(0).mean().item() == pytest.approx(1.0, abs=0.05)


def test_a_ring_outside_the_unit_disc_is_refused():
    with pytest.raises(ValueError, match=r"`max_radius` \(=1.5\)"):
        LRU(input_size=1, hidden_size=2, output_size=1, max_radius=1.5)
    with pytest.raises(ValueError, match=r"`max_angle` \(=0.0\) must be positive"):
        LRU(input_size=1, hidden_size=2, output_size=1, max_angle=0.0)
