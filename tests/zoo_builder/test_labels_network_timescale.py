"""Time scales of units: fits against closed forms and scipy, and simulated autoregressive processes."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.signal
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.leaky import Leaky
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.autocorrelation import LARGEST_LAG, TAUS, autocorrelations, fitted
from zoo_builder.labels.network_timescale import network_timescales
from zoo_builder.members import Members

LAGS = torch.arange(LARGEST_LAG + 1, dtype=torch.float64)
SPACING = (TAUS[1] / TAUS[0]).item()
"""How far a time scale may be off: the next candidate."""


def near(tau, expected):
    return expected / SPACING < tau < expected * SPACING


def test_one_exponential_has_its_own_time_scale_and_of_two_the_slower_counts():
    slow = [0.8, 3.0, 17.0, 60.0]
    one = torch.stack([torch.exp(-LAGS / tau) for tau in slow])
    two = 0.6 * torch.exp(-LAGS / 1.5) + 0.4 * torch.exp(-LAGS / 20)
    found = fitted(torch.cat([one, two[None]])).tolist()
    assert all(near(tau, expected) for tau, expected in zip(found, [*slow, 20.0], strict=True))


def test_noisy_autocorrelations_have_the_time_scales_that_scipy_fits():
    noise = np.random.default_rng(0).normal(scale=0.005, size=(6, len(LAGS)))
    lags = LAGS.numpy()
    truths = [(0.5, 1, 12), (0.3, 2, 30), (0.7, 1, 8), (0.5, 3, 40), (1, 4, 9), (0, 1, 6)]
    for row, (share, fast, slow) in enumerate(truths):
        curve = share * np.exp(-lags / fast) + (1 - share) * np.exp(-lags / slow) + noise[row]
        models = {
            2: (lambda t, a, tau: a * np.exp(-t / tau), (1, 5), ([0, 0.1], [1, 100])),
            4: (
                lambda t, a, c, fast, slow: a * (c * np.exp(-t / fast) + (1 - c) * np.exp(-t / slow)),
                (0.9, 0.5, 2, 20),
                ([0, 0, 0.1, 0.1], [1, 1, 100, 100]),
            ),
        }
        criteria, slowest = {}, {}
        for count, (model, start, bounds) in models.items():
            best, _ = scipy.optimize.curve_fit(model, lags, curve, p0=start, bounds=bounds, maxfev=20000)
            residual = np.sum((model(lags, *best) - curve) ** 2)
            criteria[count] = 2 * count + len(lags) * math.log(residual / len(lags))
            slowest[count] = max(best[count // 2 :])
        expected = slowest[min(criteria, key=criteria.get)]
        assert fitted(torch.tensor(curve)[None]).item() == pytest.approx(expected, rel=0.15)


def test_autocorrelations_are_means_over_trials_of_lagged_products():
    states = torch.randn(2, 60, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(1)
    states[1, :, :, :, 2] = 5.0
    found = autocorrelations(states)
    for model, unit in ((0, 0), (1, 3)):
        trials = states[model, :, :, :, unit].numpy()
        trials = [trial for group in (trials - trials.mean(2, keepdims=True)).transpose(1, 2, 0) for trial in group]
        covariance = [np.mean([np.mean(t[: 60 - lag] * t[lag:]) for t in trials]) for lag in range(LARGEST_LAG + 1)]
        assert found[model, unit].numpy() == pytest.approx(np.array(covariance) / covariance[0], abs=1e-12)
    assert found[1, 2].isnan().all()
    assert fitted(found[1]).isnan().tolist() == [False, False, True, False, False]


def autoregressive(timescales, shares, groups, units=1):
    """States (1, time, group, trial, unit) of sums of AR(1) processes with these time scales and shares of variance."""
    random, total = np.random.default_rng(0), 0.0
    for timescale, share in zip(timescales, shares, strict=True):
        decay = math.exp(-1 / timescale)
        drive = random.normal(size=(800, groups, 4, units)) * math.sqrt(share * (1 - decay**2))
        total = total + scipy.signal.lfilter([1.0], [1.0, -decay], drive, axis=0)
    # Groups have means of their own, and short trials count.
    return torch.from_numpy(total[None, 400:] + random.normal(size=(groups, 1, units)))


@pytest.mark.parametrize("timescale", [1.0, 4.0, 15.0])
def test_autoregressive_processes_have_their_own_time_scale(timescale):
    found = fitted(autocorrelations(autoregressive([timescale], [1.0], 8, units=40))[0])
    assert found.median().item() == pytest.approx(timescale, rel=0.05)
    # Most are of one exponential, which the errors of an autocorrelation alone do not refute.
    assert ((found / timescale - 1).abs() < 0.3).double().mean() > 0.7


def test_short_trials_do_not_forget_too_soon():
    found = fitted(autocorrelations(autoregressive([30.0], [1.0], 100, units=20)[:, :90])[0])
    assert found.median().item() == pytest.approx(30, rel=0.1)


@pytest.mark.parametrize(("fast", "slow", "share"), [(1, 20, 0.5), (2, 30, 0.3), (0.5, 10, 0.8)])
def test_of_a_sum_of_two_autoregressive_processes_the_slower_one_counts(fast, slow, share):
    found = fitted(autocorrelations(autoregressive([fast, slow], [share, 1 - share], 200))[0])
    assert found.item() == pytest.approx(slow, rel=0.15)


def test_units_without_connections_keep_their_own_time_constant():
    family = Leaky(input_size=1, hidden_size=4, output_size=2)
    ids = [str(number) for number in range(40)]
    params = {name: torch.zeros(40, *family.spec.shape(name)) for name in family.spec.tensors}
    params["weight_ih"][:] = torch.tensor([1.0, 3.0, 0.2, 0.0])[:, None]
    params["tau"][:] = torch.tensor([1.5, 5.0, 10.0, 10.0])
    found, silent = network_timescales(Driven(family, params, None, Members(0, ids))).split([3, 1], 1)
    # Bits are without memory, so the activity's is that of the leak: (1 - 1/tau)^t.
    expected = [-1 / math.log(1 - 1 / tau) for tau in (1.5, 5.0, 10.0)]
    assert found.median(0).values.tolist() == pytest.approx(expected, rel=0.05)
    assert silent.isnan().all()
    columns = labels.measure(["NetworkTimescale"], family, params, None, Members(0, ids))
    each = {"mean": found.mean(1), "median": found.quantile(0.5, dim=1), "spread": found.std(1, correction=0)}
    for name, values in each.items():
        torch.testing.assert_close(columns[f"network_timescale_{name}"], values)


def test_a_network_that_nothing_moves_has_no_time_scale_and_others_keep_theirs_in_parts(monkeypatch):
    family, ids = Linear(input_size=2, hidden_size=3, output_size=1), [str(i) for i in range(5)]
    params = {name: torch.zeros(5, *family.spec.shape(name)) for name in family.spec.tensors}
    params["a"][:] = torch.linspace(0, 0.9, 5)[:, None, None] * torch.eye(3)
    params["b"][1:] = 1.0
    whole = labels.measure(["NetworkTimescale"], family, params, None, Members(0, ids))
    assert whole["network_timescale_mean"].isnan().tolist() == [True, False, False, False, False]
    monkeypatch.setattr("zoo_builder.labels.network_timescale.KEPT", 1)
    in_parts = labels.measure(["NetworkTimescale"], family, params, None, Members(0, ids))
    for name, column in whole.items():
        torch.testing.assert_close(in_parts[name], column, rtol=0, atol=0, equal_nan=True)
