"""Scores on longer sequences."""

import pytest
import torch

from tests.zoo_builder.linear_family import Linear, shift_register
from weightspace.families.elman import Elman
from zoo_builder import labels
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.char_language import CharLanguage
from zoo_builder.tasks.delayed_recall import DelayedRecall
from zoo_builder.tasks.tiled_digits import TiledDigits


def measure(family, params, task, values=None):
    ids = ["a", "b"]
    return labels.measure(["LengthGeneralisation", "Performance"], family, params, task, Members(0, ids, values or {}))


def test_a_register_is_right_at_any_length_and_one_that_never_forgets_its_first_input_gets_worse():
    family, params = shift_register(3, 5.0)
    latched = {name: tensor.clone() for name, tensor in params.items()}
    # What leaves the register grows at its end and drowns all that comes after.
    latched["a"][-1, -1] = 3
    stacked = {name: torch.stack([params[name], latched[name]]) for name in params}
    found = measure(family, stacked, DelayedRecall(num_steps=4, delay=2))
    assert found["longer_score"][0].item() == found["score"][0].item() == 1
    # Only the first answer is more than a guess, of two and of six.
    assert found["score"][1].item() == pytest.approx((1 + 0.5) / 2, abs=0.04)
    assert found["longer_score"][1].item() == pytest.approx((1 + 5 * 0.5) / 6, abs=0.04)


def test_it_is_the_score_of_the_longer_task():
    family = Elman(input_size=1, hidden_size=4, output_size=2)
    params, values = fresh_params(family, 0, ["a", "b"]), {"delay": torch.tensor([0.0, 2.0])}
    found = measure(family, params, DelayedRecall(num_steps=6), values)
    longer = measure(family, params, DelayedRecall(num_steps=12), values)
    assert torch.equal(found["longer_score"], longer["score"])


def test_a_task_of_one_length_has_no_longer_score():
    task = TiledDigits()
    family = Linear(input_size=task.input_size, hidden_size=2, output_size=task.output_size)
    found = measure(family, fresh_params(family, 0, ["a", "b"]), task)
    assert found["longer_score"].isnan().all()
    assert not found["score"].isnan().any()


def test_a_text_too_short_for_longer_windows_leaves_no_score(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("to be or not to be, that is the question. " * 15)
    task = CharLanguage(path=str(path), num_steps=40)
    family = Elman(input_size=task.input_size, hidden_size=4, output_size=task.output_size)
    found = measure(family, fresh_params(family, 0, ["a", "b"]), task)
    assert found["longer_score"].isnan().all()
    assert found["score"].isfinite().all()
