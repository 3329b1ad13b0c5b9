"""Products of edge fields: matrix products by channel, along declared pairs, and what linear maps cannot tell apart."""

import math

import pytest
import torch

from weightspace import families
from weightspace.encoders.edge_products import EdgeProducts
from weightspace.encoders.equivariant_linear import EquivariantLinear
from weightspace.encoders.fields import read_fields
from weightspace.encoders.lifts import States
from weightspace.families.elman import Elman
from weightspace.rollout import generator
from weightspace.store import Stack

EXAMPLES = [example for kind in families.available().values() for example in kind.examples()]


def stack(family, models=3):
    draws = [family.spec.random_params(generator(0, str(i), "test"), torch.float64) for i in range(models)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(models))


def made(models, basis="products"):
    torch.manual_seed(0)
    encoder = EquivariantLinear(embedding_dim=8, basis=basis).eval()
    encoder.fit_standardisation([models])
    return encoder.double()


@torch.no_grad()
def test_products_are_those_of_matrices_less_their_means_by_channel():
    models = stack(Elman(input_size=2, hidden_size=5, output_size=3))
    fields = read_fields(*models.effective)
    edges = {pair: part.values for pair, part in fields.edges.items()}
    products = EdgeProducts(1, 1).double()
    for weight in products.parameters():
        weight.fill_(1.0)
    results = products.over(fields)(States(edges=edges, nodes={}, present={}))
    centred = {pair: e[..., 0] - e[..., 0].mean((1, 2), keepdim=True) for pair, e in edges.items()}
    hidden = next(axis for axis in fields.sets if fields.sets[axis].size == 5)
    assert results.keys() == centred.keys()
    for (to, source), result in results.items():
        # The two matrices meet at the units: W_hh W_hh, W_ho W_hh and W_hh W_ih.
        expected = centred[to, hidden] @ centred[hidden, source] / math.sqrt(5)
        torch.testing.assert_close(result[..., 0], expected)


@torch.no_grad()
@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_permuting_units_changes_embeddings_by_rounding_alone(family):
    models = stack(family)
    spec, encoder = family.spec, made(models)
    element = spec.random_elements(len(models), generator(1, "test", "move"))
    element = type(element)(element.permutations, {k: torch.ones_like(v) for k, v in element.gauges.items()})
    moved = Stack(family, spec.act_stacked(element, models.params), models.rows)
    before, after = encoder([models]), encoder([moved])
    assert (after - before).abs().max() / before.std() < 1e-10


@torch.no_grad()
def test_a_ring_of_six_and_two_rings_of_three_differ_by_products_and_not_by_linear_maps():
    """Every unit has the same neighbourhood in both; the traces of their cubes are 0 and 12."""
    family = Elman(input_size=1, hidden_size=6, output_size=1)
    ring, rings = torch.zeros(2, 6, 6, dtype=torch.float64)
    for i in range(6):
        ring[i, (i + 1) % 6] = ring[(i + 1) % 6, i] = 1.0
        for j in range(6):
            rings[i, j] = float(i != j and i // 3 == j // 3)
    assert [round(float(torch.trace(torch.linalg.matrix_power(m, 3)))) for m in (ring, rings)] == [0, 12]
    params = {name: torch.ones(2, *family.spec.shape(name), dtype=torch.float64) for name in family.spec.tensors}
    (name,) = family.spec.recurrent()
    models = Stack(family, {**params, name: torch.stack([ring, rings])}, torch.arange(2))
    first, second = made(models, "complete")([models])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    first, second = made(models)([models])
    # A billion times what the linear maps leave.
    assert (first - second).abs().max() > 1e-3
