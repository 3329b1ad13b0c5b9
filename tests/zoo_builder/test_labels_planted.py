"""The planted memory mode, read back."""

import pytest
import scipy.stats
import torch

from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from zoo_builder import labels
from zoo_builder.learning.planted import Planted
from zoo_builder.members import Members


def test_the_memory_mode_is_the_planted_cosine():
    family, ids = Elman(input_size=1, hidden_size=8, output_size=1), ["a", "b", "c"]
    learned = Planted(noise=0.0).learn(family, None, Members(0, ids), [0])
    params = {name: tensor[:, 0] for name, tensor in learned.params.items()}
    measured = labels.measure(["MemoryMode"], family, params, None, Members(0, ids))["memory_mode"]
    matrix = params["weight_hh.0"].double()
    # Of gain u v^T, the squared norm is gain^2 and the square's norm is gain^2 |u.v|.
    expected = torch.linalg.matrix_norm(matrix @ matrix) / 1.5**2
    torch.testing.assert_close(measured.abs(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(measured, matrix.diagonal(dim1=1, dim2=2).sum(1) / 1.5)


def test_a_family_with_gate_rows_has_no_memory_mode():
    with pytest.raises(ValueError, match="exactly one recurrent matrix"):
        labels.columns(["MemoryMode"], [GRU(input_size=1, hidden_size=2, output_size=1).spec])


def test_the_spectral_abscissa_is_the_largest_real_part_of_known_eigenvalues():
    family = Elman(input_size=1, hidden_size=4, output_size=1)
    # Blocks of a rotation have the eigenvalues a +- ib; a change of basis keeps them.
    blocks = torch.block_diag(torch.tensor([[0.3, -2.0], [2.0, 0.3]]), torch.tensor([[0.2, 1.0], [0.0, -1.5]])).double()
    basis = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2 * torch.eye(4)
    params = {name: tensor[None] for name, tensor in family.init(torch.Generator().manual_seed(0)).items()}
    params["weight_hh.0"] = (basis @ blocks @ torch.linalg.inv(basis))[None].to(params["weight_hh.0"])
    measured = labels.measure(["SpectralAbscissa"], family, params, None, Members(0, ["a"]))["spectral_abscissa"]
    torch.testing.assert_close(measured.double(), torch.tensor([0.3], dtype=torch.float64), atol=1e-5, rtol=0)


def test_without_a_mode_planted_matrices_are_gaussian():
    family, ids = Elman(input_size=1, hidden_size=16, output_size=1), [str(i) for i in range(40)]
    matrices = Planted(gain=0.0, noise=1.0).learn(family, None, Members(0, ids), [0]).params["weight_hh.0"]
    values = (matrices * 4).flatten().double()
    assert scipy.stats.kstest(values.numpy(), "norm").pvalue > 0.01
