"""Persistent eigenvalues and wave periods of matrices that are known."""

import math

import numpy as np
import pytest
import torch

from weightspace.families.gru import GRU
from weightspace.rollout import generator
from zoo_builder import labels
from zoo_builder.labels.waves import waves
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.variable_binding import VariableBinding


def in_another_basis(matrix):
    basis = torch.randn(len(matrix), len(matrix), dtype=torch.float64, generator=generator(0, "m", "basis"))
    return basis @ matrix @ torch.linalg.inv(basis)


@pytest.mark.parametrize(
    ("law", "count", "period"),
    # Repeat copy turns every wave once in s steps; lags of 4 and 3 meet again after 12; a sign doubles the way round.
    [({"choice": 3}, 8, 4), ({"choice": 9}, 7, 12), ({"choice": 9, "swaps": 1, "signs": 1}, 7, 14)],
)
def test_waves_of_a_law_have_as_many_modes_as_its_lags_and_the_period_of_its_cycles(law, count, period):
    columns = waves(in_another_basis(VariableBinding(**law).transition)[None])
    assert (columns["persistent_eigenvalues"].item(), columns["wave_period"].item()) == (count, period)


def test_modes_that_fade_do_not_count_and_modes_that_never_meet_have_no_period():
    def turning(angle, size):
        return size * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    fading = turning(1.0, 0.89)
    stack = [
        torch.block_diag(turning(2 * math.pi / 5, 1.05), fading),
        torch.block_diag(torch.diag(torch.tensor([1.0, 0.95])), fading),
        torch.block_diag(fading, fading),
        torch.full((4, 4), torch.nan),
    ]
    columns = waves(torch.stack(stack).double())
    assert columns["persistent_eigenvalues"].tolist()[:3] == [2, 2, 0]
    assert columns["wave_period"].tolist()[:2] == [5, 1]
    assert columns["wave_period"][2].isnan()
    assert all(column[3].isnan() for column in columns.values())
    # A fifth, a seventh and an eleventh of a turn come near only after 70 steps.
    slow = torch.block_diag(*(turning(2 * math.pi / n, 1.0) for n in (5, 7, 11))).double()[None]
    assert waves(slow)["persistent_eigenvalues"].item() == 6
    assert waves(slow)["wave_period"].isnan()


def test_every_gate_row_is_counted():
    family, ids = GRU(input_size=1, hidden_size=6, output_size=2), ["a", "b"]
    params = {name: 4 * value for name, value in fresh_params(family, 0, ids).items()}
    measured = labels.measure(["Waves"], family, params, None, Members(0, ids))
    for row, name in enumerate("rzn"):
        values = np.linalg.eigvals(params["weight_hh.0"][:, row].double().numpy())
        expected = (abs(values) > 0.9).sum(1)
        assert expected.min() > 0
        assert measured[f"weight_hh_0_{name}_persistent_eigenvalues"].tolist() == expected.tolist()
