"""The stable parameterisations: rates, Euler steps against scipy's matrix exponential, stability, refusals."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from weightspace.families.stable_reparam import PARAMETERISATIONS, StableReparam, parameter_of, rate_of
from weightspace.rollout import generator, rollout

SIZES = {"input_size": 1, "hidden_size": 5, "output_size": 1}
EACH = pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
MIXED = pytest.mark.parametrize("mixed", [False, True], ids=["diagonal", "mixed"])


def drawn(family, key="init"):
    return {name: value.double() for name, value in family.init(generator(0, "m", key)).items()}


@EACH
def test_parameters_and_rates_are_inverse_to_each_other(parameterisation):
    rate = torch.logspace(-4, 0.9, 40, dtype=torch.float64)
    again = rate_of(parameterisation, parameter_of(parameterisation, rate))
    torch.testing.assert_close(again, rate, rtol=1e-10, atol=0)


def test_all_parameterisations_start_as_the_same_network():
    x = torch.randn(1, 20, 3, 1, dtype=torch.float64, generator=generator(0, "m", "x"))
    outputs = []
    for parameterisation in PARAMETERISATIONS:
        family = StableReparam(**SIZES, parameterisation=parameterisation, mixed=True)
        params = {name: value[None] for name, value in drawn(family).items()}
        outputs.append(rollout(family, params, x).outputs)
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-4, atol=1e-5)


@EACH
@MIXED
def test_small_steps_follow_the_linear_differential_equation(parameterisation, mixed):
    step, end = 0.001, 2.0
    family = StableReparam(
        **SIZES, parameterisation=parameterisation, nonlinearity="identity", mixed=mixed, time_step=step
    )
    params = drawn(family)
    params["bias"] = torch.zeros_like(params["bias"])
    rate = torch.nn.functional.softplus(torch.randn(5, generator=generator(0, "m", "init"))).clamp(max=2).double()
    basis = params["basis"] if mixed else torch.eye(5, dtype=torch.float64)
    matrix = -(basis.T @ rate.diag() @ basis).numpy()
    x = torch.zeros(1, round(end / step), 1, 1, dtype=torch.float64)
    x[0, 0] = 1 / step
    h = rollout(family, {name: value[None] for name, value in params.items()}, x).states["h"][0, -1, 0]
    torch.testing.assert_close(h, torch.tensor(expm(matrix * end)) @ params["weight_ih"][:, 0], rtol=5e-3, atol=5e-4)


@EACH
@MIXED
def test_euler_stays_stable_whatever_w_unless_rates_are_direct(parameterisation, mixed):
    options = {"parameterisation": parameterisation, "nonlinearity": "identity", "mixed": mixed}
    family = StableReparam(**SIZES, **options, time_step=0.5)
    params = drawn(family)
    params["w"] = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0], dtype=torch.float64)
    used = family.effective(params)
    matrix = used["weight_hh"] if mixed else -used["rate"].diag()
    radius = torch.linalg.eigvals(torch.eye(5) + family.time_step * matrix).abs().max().item()
    assert (radius > 1) == (parameterisation == "direct")
    outputs = rollout(
        family, {name: value[None] for name, value in params.items()}, torch.ones(1, 400, 1, 1, dtype=torch.float64)
    ).outputs
    assert (outputs.abs().max() > 1e6) == (parameterisation == "direct")


def test_initial_rates_are_softplus_of_normal_numbers_up_to_the_bound_and_the_basis_is_orthogonal():
    family = StableReparam(input_size=1, hidden_size=400, output_size=1, mixed=True)
    params = family.init(generator(0, "m", "init"))
    rate = family.effective({**params, "basis": torch.eye(400)})["weight_hh"].diagonal().neg()
    assert 1.95 < rate.max() <= 2.0001
    assert rate.median().item() == pytest.approx(0.693, abs=0.08)
    torch.testing.assert_close(params["basis"] @ params["basis"].T, torch.eye(400), rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [0.0, -0.1, 0.6, 1.0, float("nan"), float("inf")])
def test_an_unstable_time_step_is_refused(step):
    with pytest.raises(ValueError, match=r"`time_step` \(=.*\) of StableReparam must be above 0 and at most 0.5"):
        StableReparam(**SIZES, time_step=step)


@pytest.mark.parametrize("field", ["parameterisation", "nonlinearity"])
def test_an_unknown_name_is_refused(field):
    with pytest.raises(ValueError, match=rf"`{field}` \(='x'\) of StableReparam must be one of \('"):
        StableReparam(**SIZES, **{field: "x"})


def test_hardtanh_units_move_by_at_most_the_time_step():
    family = StableReparam(**SIZES, nonlinearity="hardtanh")
    params = drawn(family)
    x = 3 * torch.randn(1, 30, 2, 1, dtype=torch.float64, generator=generator(0, "m", "x"))
    states = rollout(family, {name: value[None] for name, value in params.items()}, x).states["h"][0, :, 1].numpy()
    rate, before, cut = family.effective(params)["rate"].numpy(), np.zeros(5), 0
    for t in range(30):
        drive = params["weight_ih"].numpy()[:, 0] * x[0, t, 1].item() + params["bias"].numpy() - rate * before
        cut += (np.abs(drive) > 1).sum()
        before = before + family.time_step * np.clip(drive, -1, 1)
        np.testing.assert_allclose(states[t], before, rtol=1e-12, atol=1e-12)
    # Enough drives on either side of the corner.
    assert 20 < cut < 130
