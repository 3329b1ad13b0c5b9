"""Henrici's departure from normality against closed forms."""

import math

import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.gru import GRU
from weightspace.rollout import generator
from zoo_builder import labels
from zoo_builder.labels.non_normality import henrici
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members


def test_normal_matrices_have_none_nilpotent_ones_all_and_triangular_ones_their_corner():
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    shift = torch.diag(torch.ones(2, dtype=torch.float64), -1)
    corner = torch.tensor([[0.5, 2.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.1]], dtype=torch.float64)
    broken = torch.full((3, 3), torch.nan, dtype=torch.float64)
    found = henrici(torch.stack([0.7 * rotation, shift, corner, 1e200 * corner, 0 * shift, broken]))
    expected = 2 / math.sqrt(4 + 0.25 + 0.09 + 0.01)
    assert found[:4].tolist() == pytest.approx([0, 1, expected, expected], abs=1e-6)
    assert found[4:].isnan().all()


def test_the_jacobian_and_the_weights_of_a_linear_network_are_its_matrix():
    family, ids = Linear(input_size=1, hidden_size=4, output_size=1), ["a", "b"]
    params = fresh_params(family, 0, ids)
    measured = labels.measure(["NonNormality"], family, params, None, Members(0, ids))
    torch.testing.assert_close(measured["a_henrici"], henrici(params["a"].double()), rtol=1e-9, atol=0)
    torch.testing.assert_close(measured["jacobian_henrici"], measured["a_henrici"], rtol=1e-9, atol=0)
    assert 0.05 < measured["a_henrici"].min() < measured["a_henrici"].max() < 0.95


def test_every_gate_row_is_measured():
    family, ids = GRU(input_size=1, hidden_size=4, output_size=2), ["a", "b"]
    params = fresh_params(family, 0, ids)
    measured = labels.measure(["NonNormality"], family, params, None, Members(0, ids))
    for row, name in enumerate("rzn"):
        expected = henrici(params["weight_hh.0"][:, row].double())
        torch.testing.assert_close(measured[f"weight_hh_0_{name}_henrici"], expected, rtol=1e-9, atol=0)


def test_normal_matrices_have_no_departure_at_all_however_their_eigenvalues_round():
    draws = torch.randn(64, 7, 7, dtype=torch.float64, generator=generator(0, "normal", "matrices"))
    rotations = torch.linalg.qr(draws)[0]
    diagonal = torch.diag_embed(draws[:, 0])
    for normal in (draws + draws.mT, draws - draws.mT, rotations, diagonal, rotations @ diagonal @ rotations.mT):
        assert henrici(normal).tolist() == [0] * 64
    # The root of 1e-12 of the squares is well above rounding.
    assert henrici(diagonal + 1e-6 * torch.triu(draws, 1)).min() > 1e-7
