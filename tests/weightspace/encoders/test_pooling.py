"""Scales of pooled invariants: mean 0 and spread 1 over training models, and files from before there were any."""

import pytest
import torch
import torch.nn.functional as F

from weightspace.encoders.equivariant_linear import EquivariantLinear
from weightspace.encoders.fitting import filled
from weightspace.encoders.matrix_power import MatrixPower
from weightspace.encoders.message_passing import MessagePassing
from weightspace.encoders.pooling import PooledScale
from weightspace.families.elman import Elman
from weightspace.rollout import generator
from weightspace.store import Stack


def stack(models, hidden_size=5):
    family = Elman(input_size=2, hidden_size=hidden_size, output_size=1)
    draws = [family.spec.random_params(generator(0, str(i), "test"), torch.float32) for i in range(models)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(models))


def made():
    torch.manual_seed(0)
    return MatrixPower(embedding_dim=8, edge_dim=4, product_dim=4, node_dim=8, num_layers=2).eval()


def test_scales_are_means_and_standard_deviations_with_a_floor_in_units_of_size():
    values = torch.tensor([[1.0, 5.0, 100.0, 0.0], [3.0, 5.0, 101.0, 0.0]])
    scale = PooledScale(4, floor=0.05)
    scale.fit(values)
    torch.testing.assert_close(scale.mean, torch.tensor([2.0, 5.0, 100.5, 0.0]))
    size = (100.0**2 / 2 + 101.0**2 / 2) ** 0.5
    torch.testing.assert_close(scale.scale, torch.tensor([1.0, 0.25, 0.05 * size, 1.0]))
    torch.testing.assert_close(scale(values)[:, :2], torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


@torch.no_grad()
def test_what_the_head_reads_of_training_models_has_mean_0_and_spread_1_at_most():
    models, encoder = stack(16), made()
    encoder.fit_standardisation([models])
    pooled = encoder.pooled(models)
    torch.testing.assert_close(pooled.mean(0), torch.zeros(pooled.shape[1]), rtol=0, atol=1e-4)
    spread = pooled.std(0, correction=0)
    assert spread.max() < 1 + 1e-4
    # Of each channel of a kind that these models have something varies.
    assert (spread > 0.99).float().mean() > 0.1


@torch.no_grad()
def test_scales_do_not_depend_on_how_many_stacks_bring_the_models_of_a_family():
    models = stack(32)
    halves = [Stack(models.family, {k: v[part] for k, v in models.params.items()}, models.rows[part])
              for part in (slice(0, 16), slice(16, 32))]  # fmt: skip
    encoder = made()
    encoder.fit_standardisation(iter(halves))
    pooled = encoder.pooled(models)
    torch.testing.assert_close(pooled.mean(0), torch.zeros(pooled.shape[1]), rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_file_from_before_there_were_scales_is_read_as_it_was():
    models, encoder = stack(4), made()
    older = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("level.")}
    assert len(older) == len(encoder.state_dict()) - 2
    opened = filled(made, older)
    torch.testing.assert_close(opened([models]), encoder([models]), rtol=0, atol=0)
    encoder.fit_standardisation([models])
    encoder.load_state_dict(older)
    torch.testing.assert_close(encoder.level.scale, torch.ones_like(encoder.level.scale))


def test_a_file_that_lacks_anything_else_is_refused():
    tensors = {name: tensor for name, tensor in made().state_dict().items() if name != "head.2.weight"}
    with pytest.raises(ValueError, match=r"'head\.2\.weight' has shape None"):
        filled(made, tensors)


@torch.no_grad()
@pytest.mark.parametrize("kind", [EquivariantLinear, MatrixPower, MessagePassing])
def test_models_of_one_cohort_differ_from_the_start_in_what_the_head_reads(kind):
    """Where what the declaration says outweighs weights, the spread is below .02, and training stays at the mean."""
    models = stack(32, hidden_size=12)
    torch.manual_seed(0)
    encoder = kind().eval()
    encoder.fit_standardisation([models])
    pooled = encoder.pooled(models)
    read = F.layer_norm(pooled, pooled.shape[1:])
    assert read.std(0).mean() > 0.03
