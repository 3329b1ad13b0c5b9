"""Spectra of maps by layer and role, against numpy.linalg."""

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag

from tests.weightspace.encoders.models import stack_of
from weightspace.declaration import NODE_KINDS
from weightspace.encoders.spectra import Spectra
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.second_order import SecondOrder
from weightspace.graph import CHANNELS, EDGE_TYPES
from weightspace.rows import channel_of
from weightspace.store import Stack

DRIVE = channel_of("drive", 0)


def spectrum(matrix):
    """Singular values, then real parts and |imaginary parts| of eigenvalues by falling modulus."""
    values = np.linalg.eigvals(matrix)
    values = values[np.lexsort((-values.real, -np.abs(values).round(9)))]
    return np.concatenate([np.linalg.svd(matrix, compute_uv=False), values.real, np.abs(values.imag)])


def tables(stack, **options):
    return {name: table.numpy() for name, table in Spectra(**options).read(stack).items()}


def test_each_recurrent_map_has_the_spectrum_that_numpy_finds():
    stack = stack_of(GRU(input_size=2, hidden_size=7, output_size=2, num_layers=2), models=3)
    found = tables(stack, points=7)["recurrent"]
    for model in range(3):
        for layer in (0, 1):
            for row, role in enumerate(("gate", "timescale", "drive")):
                matrix = stack.params[f"weight_hh.{layer}"][model, row].numpy()
                group = layer * CHANNELS + channel_of(role, 0)
                np.testing.assert_allclose(found[model, group], spectrum(matrix), rtol=1e-9, atol=1e-10)


def test_sizes_mix_by_values_on_straight_lines_between_sorted_ones():
    stack = stack_of(Elman(input_size=1, hidden_size=6, output_size=1), models=2)
    found = tables(stack, points=9)["recurrent"][:, DRIVE].reshape(2, 3, 9)
    for model in range(2):
        exact = spectrum(stack.params["weight_hh.0"][model].numpy()).reshape(3, 6)
        for part in range(3):
            expected = np.interp(np.linspace(0, 5, 9), np.arange(6), exact[part])
            np.testing.assert_allclose(found[model, part], expected, rtol=1e-9, atol=1e-10)


def test_other_maps_have_singular_values_and_vectors_their_norm():
    stack = stack_of(Elman(input_size=3, hidden_size=5, output_size=2), models=2)
    found, params = tables(stack, points=3), {name: value.numpy() for name, value in stack.params.items()}
    for model in range(2):
        for name, matrix, size in (
            ("input", params["weight_ih.0"][model], 3),
            ("output", params["weight_ho"][model], 2),
            (None, params["weight_ho"][model] @ params["weight_ih.0"][model], 2),
        ):
            group = (len(EDGE_TYPES) if name is None else EDGE_TYPES.index(name)) * CHANNELS + DRIVE
            exact = np.linalg.svd(matrix, compute_uv=False)
            expected = np.interp(np.linspace(0, size - 1, 3), np.arange(size), exact)
            np.testing.assert_allclose(found["maps"][model, group], expected, rtol=1e-12)
        norm = found["vectors"][model, NODE_KINDS.index("hidden") * CHANNELS + DRIVE, 0]
        np.testing.assert_allclose(norm, np.linalg.norm(params["bias.0"][model]), rtol=1e-12)


def test_a_low_rank_map_has_the_spectrum_of_the_product_of_its_factors():
    stack = stack_of(CPRNN(input_size=2, hidden_size=5, output_size=1, rank=2), models=1)
    product = stack.params["factor_c"][0].numpy() @ stack.params["factor_a"][0].numpy()
    found = tables(stack, points=5, max_layers=1)["recurrent"][0, CHANNELS + DRIVE].reshape(3, 5)
    expected = spectrum(product).reshape(3, 5)
    np.testing.assert_allclose(found[:, :2], expected[:, :2], rtol=1e-9, atol=1e-10)
    # Rank 2: the rest is rounding, and not for a standardisation to blow up.
    assert (found[:, 2:] == 0).all()


def test_a_tensor_of_products_is_taken_as_the_blocks_of_one_matrix():
    family = SecondOrder(input_size=2, hidden_size=3, output_size=1)
    stack = stack_of(family, models=1)
    tensor = stack.params["weight_hhi"][0].numpy()
    blocks = [tensor[:, :, 0], tensor[:, :, 1]]
    blocks += [stack.params["weight_hh"][0].numpy()] if "weight_hh" in stack.params else []
    matrix = block_diag(*blocks)
    found = tables(stack, points=len(matrix))["recurrent"][0, DRIVE]
    np.testing.assert_allclose(found, spectrum(matrix), rtol=1e-9, atol=1e-10)


def test_eigenvalues_of_one_modulus_are_in_one_order_whatever_rounding_says():
    """A ring with alternating signs has eigenvalues 1, -1 and so on, all of modulus 1."""
    family = Elman(input_size=1, hidden_size=4, output_size=1)
    stack = stack_of(family, models=1)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    ring = torch.eye(4, dtype=torch.float64).roll(1, 0) * signs
    values = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [1, 3, 2, 0]):
        params = {**stack.params, "weight_hh.0": ring[order][:, order][None]}
        values.append(tables(Stack(family, params, stack.rows), points=4)["recurrent"][0, DRIVE])
    np.testing.assert_allclose(values[1], values[0], atol=1e-12)
    np.testing.assert_allclose(values[2], values[0], atol=1e-12)


def test_more_layers_than_there_are_groups_for_are_refused_by_name():
    deep = stack_of(Elman(input_size=1, hidden_size=2, output_size=1, num_layers=3), models=1)
    with pytest.raises(ValueError, match=r"Elman has 3 layers, but this Spectra reads 2 .*`max_layers` 3 or more"):
        Spectra(max_layers=2)([deep])
    with pytest.raises(ValueError, match=r"`points` \(=0\) must be from 1 to"):
        Spectra(points=0)
