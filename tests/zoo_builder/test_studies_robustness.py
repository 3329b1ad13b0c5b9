"""Disturbed networks: norms of perturbations, removed units, and what is asked of them."""

import pytest
import torch

from weightspace import families
from weightspace.rollout import Streams, rollout
from zoo_builder.studies.robustness import SIZES, UNITS, perturbed, robustness, without_unit


@pytest.fixture
def leaky():
    family = families.load("Leaky", {"input_size": 2, "hidden_size": 9, "output_size": 3})
    draws = [family.init(torch.Generator().manual_seed(seed)) for seed in range(2)]
    return family, {name: torch.stack([draw[name] for draw in draws]) for name in family.spec.tensors}


def streams():
    return Streams(0, ["a", "b"], "test")


def test_a_perturbation_has_the_asked_size_in_parts_of_the_norm_of_each_model(leaky):
    _, params = leaky
    moved = perturbed(params, "weight_hh", 0.3, streams())
    for before, after in zip(params["weight_hh"], moved["weight_hh"], strict=True):
        assert ((after - before).norm() / before.norm()).item() == pytest.approx(0.3, rel=1e-5)
    assert moved["weight_ih"] is params["weight_ih"]
    longer = perturbed(params, "tau", 10.0, streams(), signed=False)["tau"]
    assert (longer >= params["tau"]).all()
    both = perturbed({"tau": params["tau"].clone()}, "tau", 1.0, streams())["tau"]
    assert (both < params["tau"]).any()


def test_what_a_removed_unit_does_reaches_nothing(leaky):
    family, params = leaky
    unit = torch.tensor([3, 7])
    removed = without_unit(family, params, unit)
    x = torch.randn(2, 6, 4, 2, generator=torch.Generator().manual_seed(0))
    outputs = rollout(family, removed, x).outputs
    driven = {name: tensor.clone() for name, tensor in removed.items()}
    for model, number in enumerate(unit):
        driven["weight_ih"][model, number] += 5
        driven["bias"][model, number] -= 3
    assert torch.equal(rollout(family, driven, x).outputs, outputs)
    others = {name: tensor.clone() for name, tensor in removed.items()}
    others["weight_ih"][:, 1] += 5
    assert not torch.allclose(rollout(family, others, x).outputs, outputs)


def test_units_are_removed_in_the_order_of_their_time_constants(leaky):
    family, params = leaky
    seen = []

    def ask(changed):
        seen.append({name: tensor for name, tensor in changed.items() if not torch.equal(tensor, params[name])})
        return torch.full((2,), float(len(seen)))

    curves = robustness(family, params, ask, streams())
    assert {name: tuple(curve.shape) for name, curve in curves.items()} == {
        "perturbed_weight_hh": (2, len(SIZES)), "perturbed_tau": (2, len(SIZES)),
        "without_shortest": (2, UNITS), "without_longest": (2, UNITS),
    }  # fmt: skip
    for model in range(2):
        order = params["tau"][model].argsort().tolist()
        for number, units in ((2 * len(SIZES), order), (2 * len(SIZES) + UNITS, order[::-1])):
            for rank in range(UNITS):
                silent = (seen[number + rank]["weight_ho"][model] == 0).all(0)
                assert silent.nonzero().flatten().tolist() == [units[rank]]
