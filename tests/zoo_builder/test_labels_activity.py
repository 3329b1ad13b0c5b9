"""Activity dimension and autocorrelation time against closed forms."""

import math

import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from zoo_builder import labels
from zoo_builder.labels.activity import MAX_LAG, autocorrelation, crossing_time, dimension
from zoo_builder.labels.driven import WINDOW
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members


def waves(frequency, num_lanes=8, constant=0):
    """States (1, time, lane, 1) of waves whose phases cover the circle evenly."""
    steps = torch.arange(WINDOW, dtype=torch.float64)[:, None]
    phases = torch.arange(num_lanes, dtype=torch.float64) * 2 * math.pi / num_lanes
    wave = torch.cos(frequency * steps + phases)[None, ..., None]
    return torch.cat([wave] + [torch.full_like(wave, 0.1)] * constant, dim=-1)


def test_the_autocorrelation_of_evenly_spread_waves_is_a_cosine():
    found = autocorrelation(torch.cat([waves(0.2, constant=2), waves(0.05, constant=2)]))
    lags = torch.arange(MAX_LAG + 1, dtype=torch.float64)
    torch.testing.assert_close(found, torch.stack([torch.cos(0.2 * lags), torch.cos(0.05 * lags)]), rtol=0, atol=1e-9)
    times = crossing_time(found)
    assert times[0].item() == pytest.approx(math.acos(math.exp(-1)) / 0.2, abs=0.01)
    # Its crossing lies at 23.9 steps, the last that is seen.
    assert times[1].item() == pytest.approx(math.acos(math.exp(-1)) / 0.05, abs=0.01)
    assert crossing_time(autocorrelation(waves(0.02))).isnan().all()


def test_a_time_between_lags_is_interpolated():
    correlation = torch.tensor([[1.0, 0.6, 0.2, 0.5], [1.0, 0.3, 0.2, 0.1], [1.0, 0.9, 0.9, 0.9]], dtype=torch.float64)
    found = crossing_time(correlation, level=0.4)
    assert found[:2].tolist() == pytest.approx([1.5, 6 / 7])
    assert found[2].isnan()


def test_the_dimension_counts_the_directions_that_explain_ninety_percent():
    basis = torch.linalg.qr(torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    orthogonal = torch.linalg.qr(basis.Q - basis.Q.mean(0)).Q
    variances = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [6, 3, 0.9, 0.1], [0, 0, 0, 0]], dtype=torch.float64)
    found = dimension(orthogonal * variances.sqrt()[:, None])
    assert found[:3].tolist() == [1, 4, 2]
    assert found[3].isnan()


def test_linear_units_driven_by_noise_keep_the_time_of_their_eigenvalue():
    family, ids = Linear(input_size=1, hidden_size=2, output_size=1), ["a", "b"]
    params = fresh_params(family, 0, ids)
    params["a"] = torch.stack([0.8 * torch.eye(2), torch.zeros(2, 2)])
    measured = labels.measure(["Activity"], family, params, None, Members(0, ids))
    # The second forgets at once: from 1 at lag 0 to 0 at lag 1.
    assert measured["autocorrelation_time"].tolist() == pytest.approx([-1 / math.log(0.8), 1 - math.exp(-1)], rel=0.2)
    # One input moves both units together.
    assert measured["activity_dimension"].tolist() == [1, 1]
