"""Sizes of paths through the weights, against numpy and under what each family declares."""

import numpy as np
import pytest
import torch

from weightspace.families import available
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.markov import NUM_PATHS, markov_of

FAMILIES = [family for kind in available().values() for family in kind.examples()]


def drawn(family, models=3):
    generator = torch.Generator().manual_seed(0)
    one = [family.spec.random_params(generator) for _ in range(models)]
    return {name: torch.stack([params[name] for params in one]) for name in one[0]}


def log_size(matrix):
    return np.log(np.sqrt(np.mean(matrix**2)))


def test_paths_of_one_layer_equal_the_products_of_its_matrices():
    family = Elman(input_size=2, hidden_size=5, output_size=3)
    params = drawn(family)
    columns = markov_of(family.spec, params)
    assert set(columns) == {f"{name}drive.{k}" for name in ("", "size.") for k in range(NUM_PATHS)}
    for model in range(3):
        w_in, w, w_out = (params[name][model].numpy() for name in ("weight_ih.0", "weight_hh.0", "weight_ho"))
        for k in range(NUM_PATHS):
            signed = w_out @ np.linalg.matrix_power(w, k) @ w_in
            size = abs(w_out) @ np.linalg.matrix_power(abs(w), k) @ abs(w_in)
            assert columns[f"drive.{k}"][model] == pytest.approx(log_size(signed), abs=1e-9)
            assert columns[f"size.drive.{k}"][model] == pytest.approx(log_size(size), abs=1e-9)


def test_gates_have_paths_of_their_own_and_layers_are_on_the_way():
    family = GRU(input_size=2, hidden_size=4, output_size=3, num_layers=2)
    params = drawn(family)
    columns = markov_of(family.spec, params)
    # Signs of a unit move the columns of a gate alone, so that only absolute values are of use.
    assert {name.rsplit(".", 1)[0] for name in columns} == {"drive", "size.drive", "size.gate", "size.timescale"}
    # The read-out sees the second layer, which the input reaches in one step at the earliest.
    assert "drive.0" not in columns
    update = family.spec.row_names("weight_hh.0").index("n")
    below, above, between, w_in = (
        params[name][0, update].numpy() for name in ("weight_hh.0", "weight_hh.1", "weight_ih.1", "weight_ih.0")
    )
    expected = params["weight_ho"][0].numpy() @ (above @ between + between @ below) @ w_in
    assert columns["drive.2"][0] == pytest.approx(log_size(expected), abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_declared_permutations_and_signs_leave_the_sizes_unchanged(family):
    generator, params = torch.Generator().manual_seed(1), drawn(family)
    elements = family.spec.random_elements(3, generator, torch.float64)
    signs = {name: factor.sign() for name, factor in elements.gauges.items()}
    moved = family.spec.act_stacked(type(elements)(elements.permutations, signs), params)
    before, after = (
        markov_of(family.effective_spec, torch.func.vmap(family.effective)(side)) for side in (params, moved)
    )
    # A family whose recurrent tensors are coefficients has no linear paths.
    assert before or not family.effective_spec.recurrent()
    assert set(before) == set(after)
    for name, values in before.items():
        assert torch.isfinite(values).all()
        torch.testing.assert_close(after[name], values, atol=1e-9, rtol=1e-9)
