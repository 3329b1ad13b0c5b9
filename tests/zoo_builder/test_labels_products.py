"""Ranks and shares of products: planted tensors, and drives summed one by one."""

import pytest
import torch

from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.mirnn import MIRNN
from weightspace.families.second_order import SecondOrder
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall

IDS = ["a", "b", "c"]
MEMBERS = Members(0, IDS)
SIZES = {"input_size": 3, "hidden_size": 5, "output_size": 2}


def ranks(measured):
    return [[int(measured[f"product_rank_{end}"][model]) for end in ("to", "from", "input")] for model in range(3)]


def test_the_rank_is_that_of_the_planted_tensor_and_not_of_its_small_change():
    family = SecondOrder(**SIZES)
    params = fresh_params(family, 0, IDS)
    one, two = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    planted = torch.einsum("mk,mj,mi->mkji", one, two, x) + torch.einsum("mk,mj,mi->mkji", two, one, x)
    params["weight_hhi"] = planted + 1e-6 * params["weight_hhi"]
    assert ranks(labels.measure(["Products"], family, params, None, MEMBERS)) == [[2, 2, 1]] * 3


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (SecondOrder(**SIZES), [5, 5, 3]),
        (CPRNN(**SIZES, rank=9), [5, 5, 3]),
        (MIRNN(**SIZES), [5, 5, 3]),
        (CPRNN(**SIZES, rank=2, first_order=False), [2, 2, 2]),
        (CPRNN(**SIZES, rank=0), [0, 0, 0]),
    ],
    ids=str,
)
def test_random_tensors_have_the_rank_of_their_form_and_shares_are_sums_over_trajectories(family, expected):
    params = fresh_params(family, 0, IDS)
    measured = labels.measure(["Products"], family, params, None, MEMBERS)
    assert ranks(measured) == [expected] * 3
    trajectory = Driven(family, params, None, MEMBERS).trajectory
    for model in range(3):
        own = {name: value[model].double() for name, value in params.items()}
        h, x = trajectory.before[model].flatten(0, 1), trajectory.x[model].flatten(0, 1)
        products = torch.einsum("kji,bj,bi->bk", family.product_tensor(own), h, x)
        # The rest of the drive: what tanh undoes, less products and bias.
        after = family.step(own, {"h": h}, x, {})["h"]
        sums = torch.atanh(after) - products - own["bias"]
        share = products.square().sum() / (products.square().sum() + sums.square().sum())
        assert measured["product_share"][model].item() == pytest.approx(share.item(), rel=1e-9)


def test_other_families_have_no_products():
    family = Elman(input_size=1, hidden_size=4, output_size=2)
    task = DelayedRecall(num_steps=8)
    measured = labels.measure(["Products"], family, fresh_params(family, 0, IDS), task, MEMBERS)
    assert len(measured) == 4
    assert all(column.isnan().all() for column in measured.values())
