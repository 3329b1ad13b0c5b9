"""Singular values and spectral radii side by side against LAPACK and closed forms."""

import numpy as np
import pytest
import torch

from weightspace.rollout import generator
from weightspace.rollout.native.matrices import native_singular_values, native_spectral_radii

SHAPES = [(1, 1), (2, 2), (3, 5), (5, 3), (8, 8), (13, 13), (16, 16), (24, 24), (9, 40)]


def drawn(count, rows, cols, name="m"):
    return torch.randn(count, rows, cols, dtype=torch.float64, generator=generator(0, name, "matrices"))


def special(matrices):
    """Copies of a stack with other scales and ranks."""
    low = matrices.clone()
    low[:, :, 1:] = low[:, :, :1]
    graded = matrices * 10.0 ** -torch.arange(matrices.shape[2], dtype=torch.float64)
    return torch.cat([matrices, matrices * 1e-290, matrices * 1e290, low, graded, matrices * 0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values_are_those_of_lapack(shape):
    matrices = special(drawn(11, *shape))
    found, expected = native_singular_values(matrices), torch.from_numpy(np.linalg.svd(matrices, compute_uv=False))
    scale = torch.where(expected[:, :1] > 0, expected[:, :1], 1)
    assert ((found - expected).abs() / scale).max() < 1e-13
    assert bool((found[:, 1:] <= found[:, :-1]).all())


def test_singular_values_of_graded_columns_keep_their_digits_however_small_they_are():
    # Orthogonal columns times scales: the scales are the singular values, which LAPACK finds to 1e-16 of the largest.
    scales = 10.0 ** -torch.arange(0, 48, 4, dtype=torch.float64)
    q = torch.linalg.qr(drawn(5, 12, 12)).Q
    found = native_singular_values(q * scales)
    torch.testing.assert_close(found, scales.expand(5, -1), rtol=1e-11, atol=0)


def test_a_symmetric_matrix_without_negative_eigenvalues_has_them_as_singular_values():
    half = drawn(9, 7, 20)
    covariance = half @ half.transpose(1, 2)
    expected = torch.linalg.eigvalsh(covariance).flip(-1)
    torch.testing.assert_close(native_singular_values(covariance), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 12, 17, 24])
def test_spectral_radii_are_those_of_lapack(n):
    matrices = drawn(19, n, n)
    matrices = torch.cat([matrices, matrices * 1e-200, matrices * 1e200, matrices @ matrices.transpose(1, 2)])
    expected = np.abs(np.linalg.eigvals(matrices.numpy())).max(1)
    torch.testing.assert_close(native_spectral_radii(matrices), torch.from_numpy(expected), rtol=1e-12, atol=0)


def test_spectral_radii_of_matrices_whose_eigenvalues_are_known():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    cases = {
        "zero": (torch.zeros(2, 2).double(), 0),
        "nilpotent": (torch.ones(2, 2).double().triu(1), 0),
        "rotation": (turn * 0.9, 0.9),
        "both signs": (torch.diag(torch.tensor([0.5, -0.5], dtype=torch.float64)), 0.5),
        # A double eigenvalue without a second eigenvector, where LAPACK keeps half the digits once it is turned.
        "defective": (torch.tensor([[0.7, 1.0], [0.0, 0.7]], dtype=torch.float64), 0.7),
        "far from normal": (torch.tensor([[0.7, 1e6], [0.0, 0.3]], dtype=torch.float64), 0.7),
    }
    found = native_spectral_radii(torch.stack([matrix for matrix, _ in cases.values()]))
    expected = torch.tensor([radius for _, radius in cases.values()], dtype=torch.float64)
    # Rounding is magnified by as much as a matrix is far from normal, here a million.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(found[:-1], expected[:-1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", [native_singular_values, native_spectral_radii])
def test_what_is_found_of_a_matrix_depends_on_no_other(function):
    matrices = special(drawn(13, 9, 9))
    together = function(matrices)
    for place in (0, 5, 20, 77):
        assert torch.equal(function(matrices[place : place + 1])[0], together[place])
    order = torch.randperm(len(matrices), generator=torch.Generator().manual_seed(0))
    assert torch.equal(function(matrices[order]), together[order])


def test_views_are_read_as_they_lie():
    rows = drawn(6, 3 * 5, 5).unflatten(1, (3, 5))
    for view in (rows[:, 1], rows[:, 1].transpose(1, 2), rows[::2, 2]):
        assert torch.equal(native_singular_values(view), native_singular_values(view.contiguous()))
        assert torch.equal(native_spectral_radii(view), native_spectral_radii(view.contiguous()))
