"""Fixed points of networks that are known to have them."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from tests.zoo_builder.linear_family import Linear
from weightspace.families.elman import Elman
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.fixed_points import find, first_of_each
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members


def test_a_linear_network_rests_at_the_origin_if_anywhere():
    family, ids = Linear(input_size=1, hidden_size=2, output_size=1), ["a", "b", "c"]
    params = fresh_params(family, 0, ids)
    params["a"] = torch.tensor([[[0.5, 3.0], [0.0, -0.9]], [[1.05, 0.0], [0.0, 0.5]], [[0.6, 0.0], [0.0, 0.2]]])
    measured = labels.measure(["FixedPoints"], family, params, None, Members(0, ids))
    assert measured["num_fixed_points"].tolist() == [1, 1, 1]
    assert measured["fixed_points_stable_share"].tolist() == [1, 0, 1]


def test_a_unit_that_only_counts_up_has_no_fixed_point():
    family, ids = Elman(input_size=1, hidden_size=1, output_size=1, nonlinearity="relu"), ["a", "b"]
    params = fresh_params(family, 0, ids)
    params["weight_hh.0"], params["bias.0"] = torch.ones(2, 1, 1), torch.tensor([[0.1], [-0.1]])
    measured = labels.measure(["FixedPoints"], family, params, None, Members(0, ids))
    # The second counts down to 0 and rests there.
    assert measured["num_fixed_points"].tolist() == [0, 1]
    assert measured["fixed_points_stable_share"][0].isnan()
    assert measured["fixed_points_stable_share"][1].item() == 1


def test_a_bistable_unit_rests_at_three_points_of_which_the_middle_one_is_unstable():
    family, ids = Elman(input_size=1, hidden_size=1, output_size=1), ["a", "b"]
    params = fresh_params(family, 0, ids)
    params["weight_hh.0"], params["bias.0"] = torch.full((2, 1, 1), 2.0), torch.tensor([[0.0], [0.1]])
    driven = Driven(family, params, None, Members(0, ids))
    starts = torch.linspace(-1, 1, 16, dtype=torch.float64)[None, :, None].expand(2, -1, -1)
    points, converged = find(driven, starts)
    assert converged.all()
    for m, bias in enumerate(params["bias.0"][:, 0].double().tolist()):
        roots = [
            brentq(lambda h, b=bias: np.tanh(2 * h + b) - h, *ends) for ends in ((-1, -0.5), (-0.4, 0.3), (0.5, 1))
        ]
        chosen = points[m, first_of_each(points, converged)[m], 0]
        assert sorted(chosen.tolist()) == pytest.approx(roots, abs=1e-8)
    # Inputs that drive it hard leave it on either side.
    params["weight_ih.0"] = torch.full((2, 1, 1), 3.0)
    measured = labels.measure(["FixedPoints"], family, params, None, Members(0, ids))
    count, share = measured["num_fixed_points"], measured["fixed_points_stable_share"]
    assert (count >= 2).all()
    torch.testing.assert_close(share * count, torch.full_like(count, 2))


def test_points_are_counted_once():
    points = torch.tensor([[[0.0, 0.0], [0.0, 0.0005], [0.0, 0.5], [0.0, 0.5], [9.0, 9.0]]])
    converged = torch.tensor([[True, True, True, True, False]])
    assert first_of_each(points, converged).tolist() == [[True, False, True, False, False]]
