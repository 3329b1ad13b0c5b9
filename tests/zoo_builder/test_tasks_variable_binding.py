"""Variable binding, step by step, and the spectrum of its law in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.variable_binding import VariableBinding

REPEAT = {"choice": 255, "swaps": 0, "signs": 0}
PAPER = {"num_values": 8, "length": 8, "horizon": 5, "levels": 1, "level": 1}
DIAGONAL = 0x8040201008040201
TASKS = [
    VariableBinding(**PAPER, **REPEAT),
    VariableBinding(**PAPER, choice=DIAGONAL),
    VariableBinding(**PAPER, choice=DIAGONAL, swaps=262676, signs=189),
    VariableBinding(**PAPER, choice=DIAGONAL, swaps=38637, signs=145),
    *VariableBinding.examples(),
]
EIGENVALUES = [64, 36, 36, 36]
"""Numbers of eigenvalues on the circle that the authors' notebook prints for the tasks of the paper."""


def plainly(task, shown):
    """Answers of one trial by the definition alone, from the shown vectors (step, value)."""
    d, s = task.num_values, task.length
    chosen = [place for place, bit in enumerate(reversed(f"{task.choice:0{s * d}b}")) if bit == "1"]
    for k in range(d):
        other = k + task.swaps // d**k % d
        chosen[k], chosen[other] = chosen[other], chosen[k]
    known = [list(vector) for vector in shown]
    for t in range(s, s + task.longest):
        past = [value for vector in known[t - s : t] for value in vector]
        known.append([past[chosen[j]] * (-1) ** (task.signs // 2**j % 2) for j in range(d)])
    return known[s:]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_answers_are_those_of_each_trial_by_itself(task):
    batch = task.sample({}, Streams(0, ["a", "b"], "t"), 3, "train")
    assert batch.x.abs().sum() == 2 * 3 * task.length * task.num_values
    for model, trial in itertools.product(range(2), range(3)):
        expected = plainly(task, batch.x[model, : task.length, trial].tolist())
        assert batch.target[model, :, trial].tolist() == expected


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_transition_moves_the_last_vectors_one_step_on(task):
    batch = task.sample({}, Streams(0, ["a"], "t"), 4, "train")
    whole = torch.cat([batch.x[:, : task.length], batch.target], 1)[0].double()
    state = whole[: task.length].transpose(0, 1).flatten(1)
    for t in range(1, task.longest + 1):
        state = state @ task.transition.T
        assert torch.equal(state, whole[t : t + task.length].transpose(0, 1).flatten(1))


def spectrum(task):
    """Eigenvalues by cycles: those of total lag L and product of signs g are the roots of lambda^L = g."""
    lags = [task.length - step for step, _ in task.sources]
    signs = [-1 if task.signs >> j & 1 else 1 for j in range(task.num_values)]
    left, roots = set(range(task.num_values)), []
    while left:
        start = j = left.pop()
        lag, sign = lags[j], signs[j]
        while (j := task.sources[j][1]) != start:
            left.remove(j)
            lag, sign = lag + lags[j], sign * signs[j]
        turn = 0 if sign == 1 else math.pi
        roots += [np.exp(1j * (turn + 2 * math.pi * k) / lag) for k in range(lag)]
    return np.array(roots)


@pytest.mark.parametrize(("task", "count"), [*zip(TASKS, [*EIGENVALUES, None, None], strict=True)], ids=str)
def test_eigenvalues_are_roots_of_unity_by_cycles(task, count):
    expected = spectrum(task)
    assert count is None or len(expected) == count
    found = np.linalg.eigvals(task.transition.numpy())
    found = found[abs(found) > 0.5]
    assert len(found) == len(expected)
    for root in expected:
        # Roots of several cycles coincide, and rounding splits them.
        assert abs(found - root).min() < 1e-6


def test_answers_beyond_a_models_level_do_not_count():
    task = VariableBinding(horizon=3, levels=3, level=3)
    level = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    batch = task.sample({"level": level}, Streams(0, ["a", "b", "c"], "t"), 5, "train")
    assert batch.weight.sum(1).tolist() == [3, 6, 12]
    outputs = torch.zeros(3, task.num_steps, 5, 2)
    outputs[:, 4 : 4 + 6] = batch.target[:, :6]
    assert task.score(outputs, batch).tolist() == [1, 1, 0.5]
    torch.testing.assert_close(task.loss(outputs, batch), torch.tensor([0, 0, 0.5]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choice": 1}, r"`choice` \(=1\) must have `num_values` \(=2\) bits of 1 among its lowest 8"),
        ({"choice": 768}, "`choice`"),
        ({"swaps": 2}, r"`swaps` \(=2\) must have digits in base 2"),
        ({"signs": 4}, r"`signs` \(=4\) must be from 0 to 3"),
        ({"level": 4}, r"`level` \(=4\) must be from 1 to `levels` \(=3\)"),
    ],
)
def test_laws_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VariableBinding(**fields)
