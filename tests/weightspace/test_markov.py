"""Markov norms against products of matrices in numpy, and what they must not and must see."""

import numpy as np
import pytest
import torch

from tests.weightspace.test_reconstruction import EXAMPLES, moves_of, stack_of
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.lstm import LSTM
from weightspace.spec import ROW_ROLES
from weightspace.store import Stack
from weightspace.summaries import MARKOV_STEPS, NUM_MARKOV, markov_of

STEPS = range(MARKOV_STEPS + 1)
DRIVE = ROW_ROLES.index("drive")


def log_rms(left, between, right):
    found = [left @ np.linalg.matrix_power(between, k) @ right for k in STEPS]
    return [np.log((product**2).mean() + 1e-12) / 2 for product in found]


def by_role(stack):
    return markov_of(stack).unflatten(1, (len(ROW_ROLES), MARKOV_STEPS + 1))


def test_the_norms_of_an_elman_network_are_those_of_its_markov_parameters():
    stack = stack_of(Elman(input_size=2, hidden_size=5, output_size=3))
    assert markov_of(stack).shape == (5, NUM_MARKOV)
    found = by_role(stack)
    for i in range(len(stack)):
        left, between, right = (stack.params[n][i].numpy() for n in ("weight_ho", "weight_hh.0", "weight_ih.0"))
        np.testing.assert_allclose(found[i, DRIVE], log_rms(left, between, right), rtol=1e-9)
    assert found[:, 1:].isnan().all()


def test_layers_are_walked_through_one_connection_at_a_time():
    stack = stack_of(Elman(input_size=2, hidden_size=3, output_size=1, num_layers=2), models=1)
    w = {name: value[0].numpy() for name, value in stack.params.items()}
    between = np.block([[w["weight_hh.0"], np.zeros((3, 3))], [w["weight_ih.1"], w["weight_hh.1"]]])
    left, right = np.hstack([np.zeros((1, 3)), w["weight_ho"]]), np.vstack([w["weight_ih.0"], np.zeros((3, 2))])
    np.testing.assert_allclose(by_role(stack)[0, DRIVE], log_rms(left, between, right), rtol=1e-9)
    # Nothing gets from the first layer to the outputs without the second.
    assert by_role(stack)[0, DRIVE, 0].item() == pytest.approx(np.log(1e-12) / 2)


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_gates_whose_signs_do_not_cancel_count_by_their_absolute_values(kind):
    stack = stack_of(kind(input_size=2, hidden_size=4, output_size=3), models=2)
    roles = stack.family.spec.tensors["weight_hh.0"].row_roles
    assert roles.count("drive") == 1
    for i, found in enumerate(by_role(stack)):
        out, hh, ih = (stack.params[n][i].numpy() for n in ("weight_ho", "weight_hh.0", "weight_ih.0"))
        for role in set(roles):
            read = np.asarray if role == "drive" else np.abs
            of_rows = [log_rms(read(out), read(hh[r]), read(ih[r])) for r in range(len(roles)) if roles[r] == role]
            np.testing.assert_allclose(found[ROW_ROLES.index(role)], np.mean(of_rows, axis=0), rtol=1e-9)


def test_walks_lead_through_factors():
    stack = stack_of(CPRNN.examples()[0])
    found = by_role(stack)[:, DRIVE]
    assert found.isfinite().all()
    assert (found[:, 2:] > np.log(1e-12) / 2 + 1).all()


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_permutations_and_signs_are_not_seen_but_a_lone_permutation_is(family):
    stack = stack_of(family)
    moved = Stack(family, family.spec.act_stacked(moves_of(family, len(stack)), stack.params), stack.rows)
    found = markov_of(stack)
    torch.testing.assert_close(markov_of(moved), found, equal_nan=True, atol=1e-9, rtol=1e-9)
    for name in family.effective_spec.recurrent():
        if name in stack.params and found.isfinite().any():
            broken = Stack(family, {**stack.params, name: stack.params[name].roll(1, dims=-2)}, stack.rows)
            assert (markov_of(broken) - found).nan_to_num(0.0).abs().max() > 1e-3
