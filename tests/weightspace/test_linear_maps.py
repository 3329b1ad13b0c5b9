"""The generated linear equivariant maps: as many as the declared group allows, and no others."""

import itertools

import pytest
import torch

from tests.weightspace.equivariance import action, group, maps_of
from weightspace.encoders.edge_functions import Moments, SquareUpdate, Sums
from weightspace.spec import Axis, TensorSpec, WeightSpec

AXES = {
    "input": Axis(size=2, kind="input"),
    "hidden": Axis(size=4, kind="hidden", permutable=True),
    "output": Axis(size=2, kind="output"),
}
ONE_LAYER = WeightSpec(
    axes=AXES,
    tensors={
        "weight_hh": TensorSpec(axes=("hidden", "hidden")),
        "weight_ih": TensorSpec(axes=("hidden", "input")),
        "weight_ho": TensorSpec(axes=("output", "hidden")),
        "bias": TensorSpec(axes=("hidden",)),
        "bias_o": TensorSpec(axes=("output",)),
    },
    states={"h": "hidden"},
)
TWO_LAYERS = WeightSpec(
    axes={
        "input": Axis(size=1, kind="input"),
        "hidden.0": Axis(size=3, kind="hidden", permutable=True),
        "hidden.1": Axis(size=3, kind="hidden", permutable=True, layer=1),
    },
    tensors={
        "weight_hh.0": TensorSpec(axes=("hidden.0", "hidden.0")),
        "weight_ih.1": TensorSpec(axes=("hidden.1", "hidden.0")),
        "weight_hh.1": TensorSpec(axes=("hidden.1", "hidden.1")),
        "bias.1": TensorSpec(axes=("hidden.1",)),
    },
    states={"h": "hidden.1"},
)


def dimension(spec, source, target):
    """Dimension of the maps that commute with the group: the mean over it of the product of both traces."""
    traces = [(action(spec, e, source).trace(), action(spec, e, target).trace()) for e in group(spec)]
    return round(sum(a * b for a, b in traces).item() / len(traces))


def test_the_dimension_is_the_rank_of_the_projector_and_15_for_a_recurrent_matrix():
    elements = list(group(ONE_LAYER))
    kron = sum(torch.kron(m, m) for m in (action(ONE_LAYER, e, "weight_hh") for e in elements)) / len(elements)
    torch.testing.assert_close(kron @ kron, kron)
    # Two indices in and two out: as many maps as partitions of four things, the Bell number 15.
    assert torch.linalg.matrix_rank(kron) == dimension(ONE_LAYER, "weight_hh", "weight_hh") == 15
    assert dimension(ONE_LAYER, "weight_hh", "bias") == 5
    assert dimension(ONE_LAYER, "bias", "bias") == 2
    assert dimension(ONE_LAYER, "weight_ih", "weight_ih") == 2 * 2**2


@pytest.mark.parametrize("spec", [ONE_LAYER, TWO_LAYERS], ids=["one layer", "two layers"])
def test_the_generated_maps_between_any_two_fields_are_all_equivariant_ones(spec):
    maps = maps_of(spec, draws=17)
    for source, target in itertools.product(spec.tensors, spec.tensors):
        found = torch.linalg.matrix_rank(maps[source, target].flatten(1), rtol=1e-8)
        assert found == dimension(spec, source, target), (source, target)


@pytest.mark.slow
def test_the_generated_maps_are_all_equivariant_ones_of_all_fields_together():
    maps = maps_of(ONE_LAYER, draws=260)
    names = list(ONE_LAYER.tensors)
    together = torch.cat([maps[pair].flatten(1) for pair in itertools.product(names, names)], dim=1)
    expected = sum(dimension(ONE_LAYER, *pair) for pair in itertools.product(names, names))
    assert torch.linalg.matrix_rank(together, rtol=1e-9) == expected


@pytest.mark.parametrize("spec", [ONE_LAYER, TWO_LAYERS], ids=["one layer", "two layers"])
def test_the_generated_maps_commute_with_the_declared_group(spec):
    for (source, target), drawn in maps_of(spec, draws=2).items():
        for element in group(spec):
            before, after = action(spec, element, source), action(spec, element, target)
            torch.testing.assert_close(drawn @ before, after @ drawn)


def test_the_subset_has_six_maps_of_a_recurrent_matrix_and_no_diagonal():
    maps = maps_of(ONE_LAYER, draws=9, basis="six")["weight_hh", "weight_hh"]
    n, eye = 4, torch.eye(4, dtype=torch.float64)
    ones = torch.ones(n, n, dtype=torch.float64)
    entry, total = torch.kron(eye, eye), torch.kron(ones, ones)
    rows, columns = torch.kron(eye, ones), torch.kron(ones, eye)
    swap = torch.eye(n * n, dtype=torch.float64).view(n, n, n * n).transpose(0, 1).reshape(n * n, n * n)
    expected = torch.stack([entry, total, rows, columns, swap @ rows, swap @ columns]).flatten(1)
    found = maps.flatten(1)
    assert torch.linalg.matrix_rank(found, rtol=1e-8) == torch.linalg.matrix_rank(expected) == 6
    assert torch.linalg.matrix_rank(torch.cat([found, expected]), rtol=1e-8) == 6


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("both", [True, False])
def test_the_update_of_a_square_is_its_formula_forward_and_backward(both):
    torch.manual_seed(0)
    e, weights, p, q = drawn(2, 3, 3, 2), drawn(2, 4 if both else 2), drawn(2, 3, 2), drawn(2, 3, 2)
    d = drawn(2, 3, 2) if both else None
    expected = e @ weights[:, :2] + p[:, :, None] + q[:, None]
    if both:
        expected = expected + (e @ weights[:, 2:]).transpose(1, 2) + torch.diag_embed(d.mT).permute(0, 2, 3, 1)
    torch.testing.assert_close(SquareUpdate.apply(e, weights, p, q, d), expected)
    assert torch.autograd.gradcheck(SquareUpdate.apply, (e, weights, p, q, d))


def test_sums_and_moments_are_their_formulas_forward_and_backward():
    torch.manual_seed(0)
    e, oblong = drawn(2, 3, 3, 2), drawn(2, 3, 4, 2)
    rows, columns, diagonal = Sums.apply(e, True)
    torch.testing.assert_close((rows, columns), (e.sum(2), e.sum(1)))
    torch.testing.assert_close(diagonal, torch.stack([e[:, i, i] for i in range(3)], dim=1))
    mean, square = Moments.apply(oblong)
    torch.testing.assert_close((mean, square), (oblong.mean((1, 2)), (oblong**2).mean((1, 2))))
    assert torch.autograd.gradcheck(lambda x: Sums.apply(x, True), (e,))
    assert torch.autograd.gradcheck(lambda x: Sums.apply(x, False)[:2], (oblong,))
    assert torch.autograd.gradcheck(Moments.apply, (oblong,))
