"""Augmentations keep functions and leave their input alone."""

from types import SimpleNamespace

import pytest
import torch

from tests.members import EXAMPLES, drive
from weightspace import checks, families
from weightspace.data.augment import GroupMoves, MaskEdges, WeightNoise
from weightspace.rollout import rollout
from weightspace.spec import Axis, TensorSpec, WeightSpec
from weightspace.store import Stack


def stack_of(family, models=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    drawn = [family.spec.random_params(generator, dtype) for _ in range(models)]
    return Stack(family, {k: torch.stack([one[k] for one in drawn]) for k in drawn[0]}, torch.arange(models))


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
@pytest.mark.parametrize(("permutations", "gauges"), [(True, False), (False, True), (True, True)])
def test_group_moves_keep_the_function_and_the_original(family, permutations, gauges):
    stack = stack_of(family)
    before = {name: tensor.clone() for name, tensor in stack.params.items()}
    transform = GroupMoves(permutations=permutations, gauges=gauges)
    # Of two units, one permutation in two is the identity: with this key not all of them are.
    transform.reseed(3)
    elements = transform.draw(stack)
    transform.reseed(3)
    moved = transform(stack)
    x, start, noise = drive(family, 4, 6, 3)
    expected = rollout(family, stack.params, x, start, noise=noise).outputs
    # Noise is drawn for units, with which it moves.
    noise = checks.noise_moved(family.spec, elements, noise)
    outputs = rollout(family, moved.params, x, start, noise=noise).outputs
    torch.testing.assert_close(outputs, expected, atol=1e-9, rtol=1e-9)
    has_moved = any(not torch.equal(moved.params[name], before[name]) for name in before)
    # Not every family has gauges.
    assert has_moved == (permutations or bool(family.spec.gauges))
    assert all(torch.equal(stack.params[name], before[name]) for name in before)


def test_each_model_gets_its_own_move_and_the_same_key_the_same_moves():
    family = families.load("Elman", {"input_size": 1, "hidden_size": 16, "output_size": 1})
    one = stack_of(family, 1)
    stack = Stack(family, {k: v.expand(5, *v.shape[1:]) for k, v in one.params.items()}, torch.arange(5))
    transform = GroupMoves()
    transform.reseed(7)
    first = transform(stack).params["weight_hh.0"]
    second = transform(stack).params["weight_hh.0"]
    transform.reseed(7)
    again = transform(stack).params["weight_hh.0"]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert len({row.numpy().tobytes() for row in first}) == 5


def test_group_moves_that_move_nothing_are_refused():
    with pytest.raises(ValueError, match="changes nothing"):
        GroupMoves(permutations=False, gauges=False)


def test_weight_noise_is_in_units_of_each_models_own_spread():
    family = families.load("Elman", {"input_size": 8, "hidden_size": 64, "output_size": 8})
    stack = stack_of(family, 3)
    scaled = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)[:, None, None]
    stack.params["weight_hh.0"] = stack.params["weight_hh.0"] * scaled
    noisy = WeightNoise(scale=0.1)(stack)
    noise = (noisy.params["weight_hh.0"] - stack.params["weight_hh.0"]).flatten(1).std(1)
    spread = stack.params["weight_hh.0"].flatten(1).std(1)
    torch.testing.assert_close(noise / spread, torch.full((3,), 0.1, dtype=torch.float64), rtol=0.05, atol=0)


def test_weight_noise_respects_masks_and_domains():
    axes = {"hidden": Axis(size=50, kind="hidden", permutable=True)}
    tensors = {
        "weight": TensorSpec(axes=("hidden", "hidden"), mask="mask"),
        "mask": TensorSpec(axes=("hidden", "hidden"), role="mask"),
        "conductance": TensorSpec(axes=("hidden",), domain="positive"),
        "tau": TensorSpec(axes=("hidden",), domain="at_least_1"),
        "fixed": TensorSpec(axes=("hidden",), role="fixed"),
    }
    spec = WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"})
    generator = torch.Generator().manual_seed(0)
    drawn = [spec.random_params(generator) for _ in range(6)]
    params = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    noisy = WeightNoise(scale=3.0)(Stack(SimpleNamespace(spec=spec), params, torch.arange(6))).params
    assert torch.equal(noisy["mask"], params["mask"])
    assert torch.equal(noisy["fixed"], params["fixed"])
    assert (noisy["conductance"] > 0).all()
    assert (noisy["tau"] >= 1).all()
    assert not torch.equal(noisy["weight"], params["weight"])


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_hidden_edges_are_0_in_all_gate_rows_and_nothing_else_changes(family):
    stack = stack_of(family, 60)
    transform = MaskEdges(share=0.3)
    transform.reseed(5)
    hidden = transform.draw(stack)
    transform.reseed(5)
    masked = transform(stack).params
    edges = {name for name, _, _ in (*family.spec.matrices(), *family.spec.products())}
    assert set(hidden) <= edges
    assert hidden
    for name, tensor in stack.params.items():
        where = hidden.get(name, torch.zeros_like(tensor, dtype=torch.bool))
        assert torch.equal(masked[name], tensor.masked_fill(where, 0.0))
        if name in hidden and family.spec.channel_axis(name):
            assert torch.equal(where, where[:, :1].expand_as(where))
        if name in hidden and family.spec.tensors[name].mask is None:
            assert where.double().mean().item() == pytest.approx(0.3, abs=0.12)


def test_edges_that_a_mask_removed_or_that_cannot_be_0_are_not_hidden():
    axes = {"hidden": Axis(size=30, kind="hidden", permutable=True)}
    tensors = {
        "weight": TensorSpec(axes=("hidden", "hidden"), mask="mask"),
        "mask": TensorSpec(axes=("hidden", "hidden"), role="mask"),
        "conductance": TensorSpec(axes=("hidden", "hidden"), domain="positive", row_roles=("gain",)),
    }
    spec = WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"})
    params = {k: v[None] for k, v in spec.random_params(torch.Generator().manual_seed(0)).items()}
    hidden = MaskEdges(share=0.5).draw(Stack(SimpleNamespace(spec=spec), params, torch.arange(1)))
    assert set(hidden) == {"weight"}
    assert hidden["weight"].any()
    assert (params["mask"][hidden["weight"]] == 1).all()
    with pytest.raises(ValueError, match="below 1"):
        MaskEdges(share=1.0)
