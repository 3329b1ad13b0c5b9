"""Markov sizes as one vector of the same length for every family."""

import torch

from tests.weightspace.test_reconstruction import stack_of
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.markov import NUM_PATHS, markov_of
from weightspace.spec import ROW_ROLES
from weightspace.summaries import NUM_MARKOV, markov_summaries_of


def test_every_role_has_its_columns_with_signs_where_they_cancel_and_nan_where_there_is_none():
    stack = stack_of(GRU(input_size=2, hidden_size=5, output_size=3))
    columns, summaries = markov_of(*stack.effective), markov_summaries_of(stack)
    assert summaries.shape == (len(stack), NUM_MARKOV)
    by_role = dict(zip(ROW_ROLES, summaries.split(NUM_PATHS, dim=1), strict=True))
    assert "gate.1" not in columns
    for role, name in {"drive": "drive", "gate": "size.gate", "timescale": "size.timescale"}.items():
        expected = torch.stack([columns[f"{name}.{k}"] for k in range(NUM_PATHS)], dim=1)
        torch.testing.assert_close(by_role[role].double(), expected, atol=1e-6, rtol=1e-6)
    assert by_role["gain"].isnan().all()


def test_families_of_all_kinds_share_one_length():
    stacks = [stack_of(Elman(input_size=1, hidden_size=3, output_size=1, num_layers=2)), stack_of(GRU.examples()[0])]
    assert {markov_summaries_of(stack).shape[1] for stack in stacks} == {NUM_MARKOV}
