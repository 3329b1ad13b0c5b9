"""Linear functionals of the past against convolutions and recurrences."""

import numpy as np
import pytest
import scipy.signal
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.memory_functional import MemoryFunctional

IDS = ["a", "b"]


def decays(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_an_exponential_memory_is_a_first_order_recurrence():
    batch = MemoryFunctional().sample({"decay": decays(0.1, 2.0)}, Streams(0, IDS, "t"), 6, "train")
    for m, decay in enumerate((0.1, 2.0)):
        expected = scipy.signal.lfilter([1.0], [1.0, -np.exp(-decay)], batch.x[m, ..., 0].double().numpy(), axis=0)
        np.testing.assert_allclose(batch.target[m, ..., 0].numpy(), expected, atol=1e-5)


def test_a_polynomial_memory_is_a_convolution():
    task = MemoryFunctional(kernel="polynomial", num_steps=20)
    batch = task.sample({"decay": decays(1.1, 1.5)}, Streams(0, IDS, "t"), 3, "train")
    for m, decay in enumerate((1.1, 1.5)):
        rho = np.array([(1 + s) ** -decay for s in range(20)])
        for b in range(3):
            expected = np.convolve(batch.x[m, :, b, 0].double().numpy(), rho)[:20]
            np.testing.assert_allclose(batch.target[m, :, b, 0].numpy(), expected, atol=1e-5)


def test_answering_the_input_alone_leaves_the_variance_of_the_older_ones():
    task, count = MemoryFunctional(num_steps=4, decay=0.5), 50_000
    batch = task.sample({}, Streams(0, IDS, "t"), count, "test")
    # The variance of y_t is the sum of rho(s)^2 over s = 0..t; of y_t - x_t, the same without s = 0.
    squares = np.exp(-0.5 * np.arange(4)) ** 2
    left = np.mean([squares[1 : t + 1].sum() for t in range(4)])
    whole = np.mean([squares[: t + 1].sum() for t in range(4)])
    assert task.loss(batch.x, batch).numpy() == pytest.approx(left, rel=0.03)
    assert task.score(batch.x, batch).numpy() == pytest.approx(1 - left / whole, abs=0.01)


def test_targets_that_do_not_vary_have_no_score():
    task = MemoryFunctional(num_steps=1)
    batch = task.sample({}, Streams(0, IDS, "t"), 1, "test")
    assert task.score(batch.x, batch).isnan().all()


@pytest.mark.parametrize("fields", [{"decay": 0.0}, {"decay": float("inf")}, {"num_steps": 0}, {"kernel": "airy"}])
def test_what_is_no_memory_is_refused(fields):
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}`"):
        MemoryFunctional(**fields)


def test_a_models_decay_must_be_above_zero():
    with pytest.raises(ValueError, match="`decay` \\(=-1\\)"):
        MemoryFunctional().sample({"decay": decays(1.0, -1.0)}, Streams(0, IDS, "t"), 2, "train")
