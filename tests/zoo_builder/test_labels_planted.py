"""The planted memory mode, read back."""

import pytest
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
