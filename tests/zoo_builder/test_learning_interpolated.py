"""Points on the line between two trained models, against the ends trained by hand."""

import pytest
import torch

from tests.zoo_builder.test_relabel import run_here
from weightspace.families.echo_state import EchoState
from weightspace.families.gru import GRU
from weightspace.families.hrsnn import HRSNN
from weightspace.families.ltc import LTC
from weightspace.rollout import generator
from weightspace.store import open_zoo
from zoo_builder import learning
from zoo_builder.build import build
from zoo_builder.learning.base import Run
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.interpolated import Interpolated, between, moved
from zoo_builder.members import Members
from zoo_builder.tasks.adding import Adding

IDS = ["a", "b", "c"]
TASK = Adding(num_steps=6)
TRAINING = BPTT(num_updates=3, batch_size=4, learning_rate=0.01, init_scale=1.3)
FAMILY = GRU(input_size=2, hidden_size=4, output_size=1)


def learned(family=FAMILY, ids=IDS, mixing=0.5, settings=None, training=TRAINING):
    members = Members(0, ids, settings=settings or {})
    return Interpolated(training=training, mixing=mixing).learn(family, TASK, members, [0], Run(method="stacked"))


def end(name):
    ids = [f"{model_id}/{name}" for model_id in IDS]
    params = TRAINING.learn(FAMILY, TASK, Members(0, ids), [3], Run(method="stacked")).params
    return {key: value[:, 0].double() for key, value in params.items()}


def test_models_lie_on_the_line_between_their_own_trained_ends():
    mixing = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    mixed, first, second = learned(settings={"mixing": mixing}), end("a"), end("b")
    assert mixed.steps == (0,)
    share = mixing.reshape(-1, 1, 1)
    for name, value in mixed.params.items():
        weight = share.reshape(-1, *[1] * (first[name].dim() - 1))
        expected = (1 - weight) * first[name] + weight * second[name]
        torch.testing.assert_close(value[:, 0].double(), expected, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(first[name], second[name])
    # Half-way is in the middle for every trained tensor: twice it is the sum of the ends.
    middle = learned().params["weight_hh.0"][:, 0].double()
    torch.testing.assert_close(2 * middle, first["weight_hh.0"] + second["weight_hh.0"], atol=1e-6, rtol=1e-5)


def test_the_ends_are_the_trained_models_to_the_last_bit():
    first, second = torch.tensor([[0.3, 1.0, 5e-12, 0.1]]), torch.tensor([[1e-10, 3e-9, 0.7, 0.1]])
    for mixing, expected in ((0.0, first), (1.0, second)):
        assert torch.equal(between(first, second, torch.tensor([mixing], dtype=torch.float64)), expected)



@pytest.mark.parametrize(
    "family",
    [
        EchoState(input_size=2, hidden_size=5, output_size=1),
        LTC(input_size=2, hidden_size=4, output_size=1, wiring="random", sparsity=0.5, unfolds=1),
    ],
    ids=["fixed", "mask"],
)
def test_what_is_not_trained_is_shared_by_both_ends(family):
    ends = [learned(family, mixing=mixing).params for mixing in (0.0, 1.0)]
    middle = learned(family, mixing=0.5).params
    for name, tensor in family.spec.tensors.items():
        same = torch.equal(ends[0][name], ends[1][name])
        assert same == (tensor.role != "trained"), name
        if same:
            assert torch.equal(middle[name], ends[0][name])


@pytest.mark.parametrize(
    "family",
    [
        HRSNN(input_size=2, hidden_size=9, output_size=1, degree=3, rewiring=1.0),
        LTC(input_size=2, hidden_size=9, output_size=1, wiring="random", sparsity=0.5, unfolds=1),
    ],
    ids=["hrsnn", "ltc"],
)
def test_both_ends_begin_with_weights_on_all_connections(family):
    # A learning rate that moves no float32 weight shows what the ends began with.
    still = BPTT(num_updates=1, batch_size=2, learning_rate=1e-30)
    first, second = (learned(family, mixing=mixing, training=still).params for mixing in (0.0, 1.0))
    names = [name for name in family.spec.trained if family.spec.tensors[name].mask is not None]
    assert names
    begun, fresh = (family.init(generator(0, f"a/{name}", "init")) for name in "ab")
    for name in names:
        mask = family.spec.tensors[name].mask
        assert torch.equal(first[name][0, 0], begun[name]), name
        exists, drawn = second[mask][0, 0] != 0, fresh[name][fresh[mask] != 0]
        assert torch.isin(second[name][0, 0][exists], drawn).all(), name
        assert not second[name][0, 0][~exists].any()


def test_weights_of_lost_connections_go_to_new_ones():
    weight, mask, other = torch.tensor([1.0, 2, 3, 0, 0, 0]), torch.tensor([1.0, 1, 1, 0, 0, 0]), torch.ones(6)
    other[0] = other[5] = 0
    assert moved(weight, mask, other).tolist() == [0, 2, 3, 1, 2, 0]
    assert moved(weight, mask, mask).tolist() == weight.tolist()
    assert moved(0 * weight, 0 * mask, other).tolist() == [0] * 6


def test_a_model_does_not_depend_on_its_neighbours():
    together = learned()
    alone = learned(ids=IDS[1:2])
    for name, value in together.params.items():
        torch.testing.assert_close(alone.params[name][0], value[1], atol=1e-6, rtol=1e-5)


def test_settings_of_the_training_differ_between_models():
    rates = torch.tensor([0.01, 0.02, 0.01], dtype=torch.float64)
    plain, fast = learned(), learned(settings={"training.learning_rate": rates})
    for model, same in enumerate([True, False, True]):
        close = torch.allclose(plain.params["weight_hh.0"][model], fast.params["weight_hh.0"][model], atol=1e-6)
        assert close == same


def test_a_model_is_diverged_where_an_end_is():
    rates = torch.tensor([0.01, 1e30, 0.01], dtype=torch.float64)
    assert learned(settings={"training.learning_rate": rates}).diverged_step.tolist() == [-1, 0, -1]


def test_its_config_rebuilds_it_and_what_it_cannot_do_is_said():
    learner = Interpolated(training=TRAINING, mixing=0.2)
    assert learning.load("Interpolated", learner.config) == learner
    with pytest.raises(ValueError, match=r"`mixing` \(=1.5\) must be from 0 to 1"):
        Interpolated(mixing=1.5)
    with pytest.raises(ValueError, match="Interpolated cannot train GRU: it needs a task"):
        learner.check(FAMILY, None)


def test_one_zoo_holds_untrained_models_and_points_between_trained_ones(tmp_path):
    recipe = {
        "families": [{"class": "GRU", "hidden_size": 3}],
        "tasks": [{"class": "Adding", "num_steps": 6}],
        "learning": [
            {"class": "Untrained", "gain": {"log_uniform": [0.5, 2]}, "spectral_radius": {"uniform": [0.5, 1.5]}},
            {
                "class": "Interpolated",
                "mixing": {"uniform": [0, 1]},
                "training": {"num_updates": 2, "batch_size": 2, "learning_rate": {"choice": [0.01, 0.02]}},
            },
        ],
        "snapshots": [0],
        "models_per_cohort": 4,
        "labels": ["Performance"],
        "rollouts": {"sequences": 2},
        "splits": {"test": 0, "val": 0},
    }
    build(recipe, tmp_path / "zoo", engine=run_here)
    rows = open_zoo(tmp_path / "zoo").table.select(["model_id", "status", "score", "learning_config"]).to_pylist()
    assert [(row["status"], "untrained" in row["model_id"]) for row in rows] == [("ok", False)] * 4 + [
        ("untrained", True)
    ] * 4
    assert all(row["score"] is not None for row in rows)
    assert len({row["learning_config"] for row in rows}) == 8
