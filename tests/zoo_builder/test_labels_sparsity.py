"""Densities counted by hand, and inverse participation ratios of matrices whose eigenvectors are known."""

import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.gru import GRU
from weightspace.families.hrsnn import HRSNN
from weightspace.families.lru import LRU
from weightspace.rollout import generator
from zoo_builder import labels
from zoo_builder.labels.sparsity import participation
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members

IDS = ["a", "b"]


def measured(family, params):
    return labels.measure(["Sparsity"], family, params, None, Members(0, IDS))


def test_densities_of_a_matrix_are_counted_with_and_without_the_read_out():
    family = Linear(input_size=1, hidden_size=4, output_size=2)
    params = fresh_params(family, 0, IDS)
    matrix = torch.zeros(4, 4)
    matrix[0, 1] = matrix[1, 0] = matrix[3, 3] = 0.5
    params["a"], params["c"] = torch.stack([matrix, torch.ones(4, 4)]), params["c"].clone()
    params["c"][0, 0, :3] = 0
    found = measured(family, params)
    assert found["edge_density"].tolist() == [2 / 12, 1]
    assert found["edge_density_with_readout"].tolist() == [(2 + 5) / 20, 1]
    # The third unit is joined to nothing, the fourth to itself alone.
    assert found["unit_density"].tolist() == [0.5, 1]


def test_the_mask_of_a_spiking_network_decides():
    family = HRSNN(input_size=1, hidden_size=6, output_size=1, degree=2)
    params = fresh_params(family, 0, IDS)
    params["weight_hh"] = params["weight_hh"] + 1
    assert measured(family, params)["edge_density"].tolist() == [12 / 30] * 2


def test_all_gates_count_and_diagonal_families_have_no_columns():
    family = GRU(input_size=1, hidden_size=3, output_size=1)
    params = fresh_params(family, 0, IDS)
    params["weight_hh.0"][0, 1] = 0
    assert measured(family, params)["edge_density"].tolist() == pytest.approx([2 / 3, 1])
    assert labels.columns(["Sparsity"], [LRU.examples()[0].effective_spec]) == {}


def test_participation_ratios_of_known_eigenvectors():
    size = 6
    turns = torch.arange(size, dtype=torch.float64)
    circulant = torch.stack([torch.roll(torch.tensor([0.0, 1, 0, 0, 0, 0]).double(), k) for k in range(size)], dim=1)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator(0, "m", "r"), dtype=torch.float64)).Q
    symmetric = rotation @ torch.diag(1 + turns) @ rotation.T
    stack = torch.stack([torch.diag(1 + turns), circulant, symmetric, torch.zeros(size, size).double()])
    found = participation(stack)
    # Eigenvectors of a shift round a ring are waves, alike in all units.
    own = (rotation**4).sum(0)
    assert found["ipr_mean"][:3].tolist() == pytest.approx([1, 1 / size, float(own.mean())], abs=1e-9)
    assert found["ipr_max"][:3].tolist() == pytest.approx([1, 1 / size, float(own.max())], abs=1e-9)
    assert found["ipr_mean"][3].isnan()


def test_participation_ratios_of_equal_eigenvalues_are_those_of_their_space():
    # Units 1, 2 and 3 read nothing, so that 0 is an eigenvalue three times; units 0 and 4 have the eigenvectors of 3
    # and 7 to themselves.
    matrix = torch.zeros(5, 5, dtype=torch.float64)
    matrix[0, :3], matrix[4, 4] = torch.tensor([3.0, 1.0, 2.0]).double(), 7.0
    kernel = torch.linalg.svd(matrix).Vh[2:]
    on_diagonal = (kernel.T @ kernel).diagonal()
    expected = (1 + 1 + 3 * float(on_diagonal.square().sum() / 3)) / 5
    found = participation(torch.stack([matrix, torch.eye(5).double()]))
    assert found["ipr_mean"].tolist() == pytest.approx([expected, 1])
    assert found["ipr_max"].tolist() == pytest.approx([1, 1])


def test_participation_ratios_of_sparse_matrices_do_not_depend_on_the_order_of_units():
    stream = generator(0, "m", "sparse")
    draws = torch.randn(40, 12, 12, generator=stream, dtype=torch.float64)
    matrices = draws * (torch.rand(40, 12, 12, generator=stream) < 0.2) * (1 - torch.eye(12))
    order = torch.randperm(12, generator=stream)
    found, moved = participation(matrices), participation(matrices[:, order][:, :, order])
    for name, value in found.items():
        torch.testing.assert_close(moved[name], value, atol=1e-6, rtol=0)
