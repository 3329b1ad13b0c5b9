"""EquivariantLinear and MatrixPower: symmetry in double precision, mixed batches, chunks, masks, products, sizes."""

import pytest
import torch

from weightspace import families
from weightspace.encoders import fields
from weightspace.encoders.equivariant_linear import EquivariantLinear
from weightspace.encoders.matrix_power import MatrixPower, Product
from weightspace.encoders.scales import FieldScales
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.second_order import SecondOrder
from weightspace.graph import EDGE_TYPES
from weightspace.rollout import generator
from weightspace.spec import Axis, TensorSpec, WeightSpec
from weightspace.store import Stack

EXAMPLES = [example for kind in families.available().values() for example in kind.examples()]
ENCODERS = [EquivariantLinear, MatrixPower]


def stack(family, models=4, dtype=torch.float32):
    draws = [family.spec.random_params(generator(0, str(i), "test"), dtype) for i in range(models)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(models))


def made(kind, models, **options):
    torch.manual_seed(0)
    encoder = kind(embedding_dim=8, **options).eval()
    encoder.fit_standardisation([models])
    return encoder


def permuted(models):
    spec = models.family.spec
    element = spec.random_elements(len(models), generator(1, "test", "move"))
    element = type(element)(element.permutations, {k: torch.ones_like(v) for k, v in element.gauges.items()})
    return Stack(models.family, spec.act_stacked(element, models.params), models.rows)


@torch.no_grad()
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("family", [*EXAMPLES, SecondOrder(input_size=3, hidden_size=5, output_size=2)], ids=str)
def test_permuting_units_changes_embeddings_by_rounding_alone(kind, family):
    models = stack(family, dtype=torch.float64)
    encoder = made(kind, models).double()
    before, after = encoder([models]), encoder([permuted(models)])
    assert (after - before).abs().max() / before.std() < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("kind", ENCODERS)
def test_every_tensor_with_three_node_axes_is_read_and_its_axes_are_tied(kind):
    models = stack(SecondOrder(input_size=3, hidden_size=5, output_size=2, first_order=False))
    encoder = made(kind, models)
    before = encoder([models])
    for axis in (1, 2, 3):
        moved = {**models.params, "weight_hhi": models.params["weight_hhi"].roll(1, axis)}
        assert (encoder([Stack(models.family, moved, models.rows)]) - before).abs().max() > 1e-3 * before.std()


@torch.no_grad()
@pytest.mark.parametrize("kind", ENCODERS)
def test_mixed_families_in_one_batch_and_in_chunks_are_read_as_each_model_alone(kind, monkeypatch):
    monkeypatch.setattr(fields, "CACHED", {"cpu": 1})
    stacks = [stack(Elman(input_size=2, hidden_size=6, output_size=1), models=fields.MIN_CHUNK + 1),
              stack(GRU(input_size=1, hidden_size=4, output_size=2), models=2)]  # fmt: skip
    encoder = made(kind, stacks[0])
    alone = [
        encoder([Stack(s.family, {k: v[i : i + 1] for k, v in s.params.items()}, s.rows[i : i + 1])])
        for s in stacks
        for i in range(len(s))
    ]
    torch.testing.assert_close(encoder(stacks), torch.cat(alone), rtol=1e-4, atol=1e-5)


class Masked(Elman):
    """A network whose recurrent matrix has a mask of its own in every model."""

    effective_spec = WeightSpec(
        axes={"input": Axis(size=2, kind="input"), "hidden": Axis(size=5, kind="hidden", permutable=True)},
        tensors={
            "mask": TensorSpec(axes=("hidden", "hidden"), role="mask"),
            "weight_hh": TensorSpec(axes=("hidden", "hidden"), mask="mask"),
            "weight_ih": TensorSpec(axes=("hidden", "input")),
        },
        states={"h": "hidden"},
    )
    spec = effective_spec

    def effective(self, params):
        return params


@torch.no_grad()
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_absent_connection_is_known_from_its_mask_and_never_from_its_value(kind):
    models = stack(Masked(input_size=2, hidden_size=5, output_size=1))
    encoder = made(kind, models)
    params, before = models.params, encoder([models])
    assert params["mask"].eq(0).any()

    def moved(**changed):
        return (encoder([Stack(models.family, {**params, **changed}, models.rows)]) - before).abs().max()

    hidden = torch.where(params["mask"] > 0, params["weight_hh"], 7.0)
    assert moved(weight_hh=hidden) == 0
    # A weight of 0 that is there is another model than one without the connection.
    zero = params["weight_hh"] * params["mask"]
    assert moved(weight_hh=zero, mask=torch.ones_like(params["mask"])) > 1e-3 * before.std()


def test_scales_are_the_root_mean_squares_of_what_the_masks_leave():
    models, scales = stack(Masked(input_size=2, hidden_size=5, output_size=1), models=9), FieldScales()
    scales.add(models)
    scales.settle()
    kept = models.params["weight_hh"][models.params["mask"] > 0]
    torch.testing.assert_close(scales.edge[EDGE_TYPES.index("recurrent"), 0], kept.square().mean().sqrt())
    expected = models.params["weight_ih"].square().mean().sqrt()
    torch.testing.assert_close(scales.edge[EDGE_TYPES.index("input"), 0], expected)
    assert scales.edge[EDGE_TYPES.index("output"), 0] == 1


def test_a_product_layer_multiplies_matrices_and_keeps_their_size():
    torch.manual_seed(0)
    layer = Product(1, 1).double()
    for weight in layer.parameters():
        weight.data.fill_(1.0)
    f = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    following, product, size = layer(f)
    expected = torch.linalg.matrix_power(f, 2)
    torch.testing.assert_close(product * size.exp()[..., None, None], expected)
    singular = torch.linalg.svdvals(expected).square().mean(-1).sqrt()
    torch.testing.assert_close(size.exp(), singular)
    torch.testing.assert_close(following, f + product)


@pytest.mark.parametrize("kind", ENCODERS)
def test_models_beyond_the_limits_are_refused_by_name(kind):
    with pytest.raises(ValueError, match=r"has 9 layers, but this .* reads 8"):
        kind()([stack(Elman(input_size=1, hidden_size=2, output_size=1, num_layers=9), models=1)])
    with pytest.raises(ValueError, match=r"`edge_dim` \(=0\) must be from 1"):
        kind(edge_dim=0)


def test_a_basis_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"`basis` \(='seven'\) must be 'complete', 'six' or 'products'"):
        EquivariantLinear(basis="seven")


def test_gradients_reach_all_weights_of_what_a_family_declares():
    models = stack(Elman(input_size=2, hidden_size=6, output_size=1))
    encoder = made(EquivariantLinear, models)
    encoder([models]).square().sum().backward()
    layer, types = encoder.layers[0], [EDGE_TYPES.index(name) for name in ("recurrent", "input", "output")]
    for bank in (layer.entry.grad, layer.gather.grad[:, :2], layer.spread.grad[:, :2]):
        assert all(bank[kind].abs().max() > 0 for kind in types)
        assert bank[EDGE_TYPES.index("factor_out")].abs().max() == 0
    assert layer.opposite.grad[types[0]].abs().max() > 0
