"""Score and loss on models whose answers are known."""

import math

import pytest
import torch

from tests.zoo_builder.linear_family import Linear, shift_register
from zoo_builder import labels
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall
from zoo_builder.tasks.tiled_digits import TiledDigits


def test_a_shift_register_recalls_perfectly_and_its_loss_is_known():
    family, params = shift_register(4, gain=1.5)
    stacked = {name: torch.stack([tensor] * 3) for name, tensor in params.items()}
    values = {"delay": torch.tensor([3.0, 2.0, 3.0], dtype=torch.float64)}
    measured = labels.measure(["Performance"], family, stacked, DelayedRecall(), Members(0, ["a", "b", "c"], values))
    assert measured["score"][[0, 2]].tolist() == [1.0, 1.0]
    # To train and to test on, coins are drawn alike.
    assert measured["generalisation_gap"].isnan().all()
    # Log-odds of -1.5 and 1.5 give the right class the probability 1 / (1 + exp(-3)).
    assert measured["loss"][0].item() == pytest.approx(math.log1p(math.exp(-3)))
    # The register answers with the coin of another step: right half the time, within four standard errors.
    assert measured["score"][1].item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(512 * 22))


def test_always_the_same_digit_is_right_a_tenth_of_the_time():
    family = Linear(input_size=4, hidden_size=2, output_size=10)
    params = {name: torch.zeros(2, *family.spec.shape(name)) for name in family.spec.tensors}
    measured = labels.measure(["Performance"], family, params, TiledDigits(), Members(0, ["a", "b"]))
    torch.testing.assert_close(measured["loss"], torch.full((2,), math.log(10), dtype=torch.float64))
    assert measured["score"].sub(0.1).abs().max() < 0.06


def test_the_gap_is_what_training_sequences_go_better_by():
    family = Linear(input_size=4, hidden_size=6, output_size=10)
    params, task, ids = fresh_params(family, 0, ["a", "b"]), TiledDigits(), ["a", "b"]
    measured = labels.measure(["Performance"], family, params, task, Members(0, ids))
    driven = labels.Driven(family, params, task, Members(0, ids))
    scores = []
    for split in ("train", "test"):
        right = [outputs[:, -1].argmax(-1) == batch.target[:, 0] for batch, outputs in driven.answers(split)]
        scores.append(torch.cat(right, dim=1).double().mean(1))
    torch.testing.assert_close(measured["score"], scores[1])
    torch.testing.assert_close(measured["generalisation_gap"], scores[0] - scores[1])


def test_without_a_task_there_is_no_performance():
    family = Linear(input_size=1, hidden_size=2, output_size=1)
    params = {name: torch.zeros(2, *family.spec.shape(name)) for name in family.spec.tensors}
    measured = labels.measure(["Performance"], family, params, None, Members(0, ["a", "b"]))
    assert set(measured) == {"score", "loss", "generalisation_gap"}
    assert all(column.isnan().all() for column in measured.values())
