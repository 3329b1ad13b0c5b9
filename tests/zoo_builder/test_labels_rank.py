"""Ranks of states, Jacobians and weights against closed forms and numpy."""

import math

import numpy as np
import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.gru import GRU
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.spectra import effective_rank, matrix_ranks, participation_ratio, stable_rank
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall

KINDS = ("effective_rank", "stable_rank", "participation_ratio")


def numpy_ranks(matrix):
    s = np.linalg.svd(matrix, compute_uv=False)
    p = s / s.sum()
    return np.exp(-(p * np.log(p)).sum()), (s**2).sum() / s[0] ** 2, (s**2).sum() ** 2 / (s**4).sum()


def test_ranks_of_known_spectra():
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    ranks = matrix_ranks(torch.stack([torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2), torch.ones(2, 2)]).double())
    expected = {
        "effective_rank": [math.exp(entropy) / 2, 1, 0.5],
        "stable_rank": [10 / 9 / 2, 1, 0.5],
        "participation_ratio": [100 / 82 / 2, 1, 0.5],
    }
    for kind, values in expected.items():
        torch.testing.assert_close(ranks[kind], torch.tensor(values, dtype=torch.float64))


def test_nothing_has_no_rank():
    zeros = torch.zeros(3)
    assert all(rank(zeros).isnan() for rank in (effective_rank, stable_rank, participation_ratio))


def test_ranks_do_not_depend_on_scale():
    matrix = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ordinary, small = matrix_ranks(matrix), matrix_ranks(matrix * 1e-120)
    for kind in KINDS:
        torch.testing.assert_close(ordinary[kind], small[kind])


def test_a_linear_network_has_the_ranks_of_its_recurrent_matrix():
    family, ids = Linear(input_size=2, hidden_size=4, output_size=1), ["a", "b"]
    params = fresh_params(family, 0, ids)
    measured = labels.measure(["Rank"], family, params, None, Members(0, ids))
    for m in range(2):
        for kind, rank in zip(KINDS, numpy_ranks(params["a"][m].double().numpy()), strict=True):
            assert measured[f"jacobian_{kind}"][m].item() == pytest.approx(rank / 4)
            assert measured[f"a_{kind}"][m].item() == pytest.approx(rank / 4)


def test_states_driven_along_one_direction_have_rank_one():
    family = Linear(input_size=1, hidden_size=5, output_size=1)
    params = fresh_params(family, 0, ["a", "b"]) | {"a": torch.eye(5).repeat(2, 1, 1) * 0.5}
    measured = labels.measure(["Rank"], family, params, None, Members(0, ["a", "b"]))
    for kind in KINDS:
        torch.testing.assert_close(measured[f"state_{kind}"], torch.full((2,), 0.2, dtype=torch.float64))


def test_states_that_are_independent_inputs_fill_the_space():
    family = Linear(input_size=4, hidden_size=4, output_size=1)
    params = {"a": torch.zeros(1, 4, 4), "b": torch.eye(4)[None], "c": torch.zeros(1, 1, 4)}
    measured = labels.measure(["Rank"], family, params, None, Members(0, ["a"]))
    assert measured["state_effective_rank"].item() == pytest.approx(1, abs=0.01)
    assert measured["state_participation_ratio"].item() == pytest.approx(1, abs=0.02)
    assert measured["jacobian_effective_rank"].isnan().all()


def test_state_ranks_and_gate_rows_agree_with_numpy():
    family, ids = GRU(input_size=1, hidden_size=4, output_size=2), ["a", "b", "c"]
    params, task = fresh_params(family, 0, ids), DelayedRecall(delay=1)
    measured = labels.measure(["Rank"], family, params, task, Members(0, ids))
    states = Driven(family, params, task, Members(0, ids)).trajectory.before.flatten(1, 2).numpy()
    for m in range(3):
        spectrum = np.linalg.eigvalsh(np.cov(states[m].T))
        p = spectrum / spectrum.sum()
        assert measured["state_effective_rank"][m].item() == pytest.approx(np.exp(-(p * np.log(p)).sum()) / 4)
        assert measured["state_stable_rank"][m].item() == pytest.approx(1 / p.max() / 4)
        assert measured["state_participation_ratio"][m].item() == pytest.approx(1 / (p**2).sum() / 4)
        for row, name in enumerate("rzn"):
            for kind, rank in zip(KINDS, numpy_ranks(params["weight_hh.0"][m, row].double().numpy()), strict=True):
                assert measured[f"weight_hh_0_{name}_{kind}"][m].item() == pytest.approx(rank / 4)
