"""Labels measured by native rollouts against those of torch, whatever the label and the family."""

import dataclasses
import functools
import logging
import math

import pytest
import torch

from tests.members import ONE_OF_EACH_FAST, gated
from tests.zoo_builder.linear_family import Linear
from weightspace.families.elman import Elman
from weightspace.rollout import forward, native
from zoo_builder import labels, tasks
from zoo_builder.labels import Driven, driven
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.adding import Adding
from zoo_builder.tasks.categorical import counts_right_answers
from zoo_builder.tasks.delayed_recall import DelayedRecall
from zoo_builder.tasks.tiled_digits import TiledDigits

IDS = ["a", "b", "c"]
MEMBERS = Members(0, IDS)
GENERAL = [name for name, label in labels.available().items() if label.for_all_families]
# With MKL told to be reproducible (see conftest) not a bit depends on the stack; elsewhere the last ones may.
TOLERANCE = 0 if torch.backends.mkl.is_available() else 1e-9
TASK = DelayedRecall(num_steps=8, delay=1)
SMALL = Elman(input_size=1, hidden_size=4, output_size=2)


def wide(params):
    return {name: value.double() for name, value in params.items()}


@functools.cache
def by_torch(family):
    """Labels of a family's models in float64, measured by torch."""
    return labels.measure(GENERAL, family, wide(fresh_params(family, 0, IDS)), None, MEMBERS, "stacked")


def agree(found, expected, tolerance=1e-8):
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        if name.endswith("_henrici"):
            # The root of a difference of squares that may be but rounding.
            found, column = {**found, name: found[name].square()}, column.square()
        message = f"{name}: {found[name].tolist()} and {column.tolist()}"
        assert torch.allclose(found[name], column, rtol=tolerance, atol=tolerance, equal_nan=True), message


@pytest.mark.parametrize("family", ONE_OF_EACH_FAST, ids=str)
def test_every_label_is_the_same_natively_as_by_torch(family):
    assert native.why_not(family, torch.float64) is None
    found = labels.measure(GENERAL, family, wide(fresh_params(family, 0, IDS)), None, MEMBERS, "native")
    agree(found, by_torch(family))


@pytest.mark.parametrize("task", [one for task in tasks.available().values() for one in task.examples()[:1]], ids=str)
def test_scores_and_losses_are_the_same_natively_as_by_torch(task):
    family = gated(task, 5)
    params = wide(fresh_params(family, 0, IDS))
    names = ["Performance", "LengthGeneralisation", "Dynamics"]
    found, expected = (
        labels.measure(names, family, params, task, MEMBERS, method) for method in ("native", "stacked")
    )
    agree(found, expected)


@pytest.mark.parametrize("family", ONE_OF_EACH_FAST, ids=str)
def test_labels_of_models_in_float32_are_those_of_float64_to_single_precision(family):
    params = fresh_params(family, 0, IDS)
    # Quiescence begins with the last states of a trajectory, which are in single precision.
    in_single = ["Rank", "Memory", "Dynamics", "Quiescence"]
    in_double = [name for name in GENERAL if name not in (*in_single, "Performance", "LengthGeneralisation")]
    for names, tolerance in ((in_single, 1e-5), (in_double, 1e-8)):
        found, expected = labels.measure(names, family, params, None, MEMBERS, "native"), by_torch(family)
        agree(found, {name: expected[name] for name in found}, tolerance)


@pytest.mark.parametrize("task", [one for task in tasks.available().values() for one in task.examples()[:1]], ids=str)
def test_scores_and_losses_of_models_in_float32_are_those_of_float64_but_for_answers_that_rounding_decides(task):
    family = gated(task, 5)
    params = fresh_params(family, 0, IDS)
    found, expected = (
        labels.measure(["Performance"], family, params, task, Members(0, IDS), method=method)
        for method in ("native", "stacked")
    )
    agree({"loss": found["loss"]}, {"loss": expected["loss"]}, 1e-5)
    # One answer of the sequences that are scored at one step only; see test_native_answers for which ones may differ.
    agree({"score": found["score"]}, {"score": expected["score"]}, 1 / 256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lenient(DelayedRecall):
    """A task with another score, but the criterion that it has inherited."""

    def score(self, outputs, batch):
        return 0.5 + super().score(outputs, batch) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Impatient(DelayedRecall):
    """A task with another criterion, but the score that it has inherited."""

    def criterion(self, batch):
        return dataclasses.replace(super().criterion(batch), weight=batch.shares * (torch.arange(8) == 7))


@pytest.mark.parametrize("kind", [Lenient, Impatient])
def test_a_task_that_overrides_score_or_criterion_is_judged_by_what_it_says(kind):
    params, task = wide(fresh_params(SMALL, 0, IDS)), kind(num_steps=8, delay=1)
    assert counts_right_answers(TASK)
    assert not counts_right_answers(task)
    found, expected = (
        labels.measure(["Performance"], SMALL, params, task, Members(0, IDS), method=method)
        for method in ("native", "stacked")
    )
    agree(found, expected)


def test_where_measuring_does_not_compile_torch_measures_the_same_and_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(native.availability, "why_not_here", lambda: "the C compiler failed: no room")
    monkeypatch.setattr(forward, "measures_here", functools.cache(native.measures_here.__wrapped__))
    params = fresh_params(SMALL, 0, IDS)
    with caplog.at_level(logging.WARNING):
        found, again = (labels.measure(GENERAL, SMALL, params, TASK, MEMBERS, "native") for _ in range(2))
    expected = labels.measure(GENERAL, SMALL, params, TASK, Members(0, IDS), method="stacked")
    agree(found, expected, 0)
    agree(again, expected, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "Labels are measured by torch, not natively: the C compiler failed: no room."
    ]


def test_native_labels_depend_on_a_models_own_params_alone():
    params = fresh_params(SMALL, 0, IDS)
    together = labels.measure(GENERAL, SMALL, params, TASK, Members(0, IDS), method="native")
    own = {name: tensor[1:2] for name, tensor in params.items()}
    alone = labels.measure(GENERAL, SMALL, own, TASK, Members(0, IDS[1:2]), method="native")
    agree(
        alone,
        {name: column[1:2] for name, column in together.items()},
        0 if torch.backends.mkl.is_available() else 1e-9,
    )


OTHERS = [TiledDigits(), Adding(num_steps=6)]


@pytest.mark.parametrize(
    ("task", "method"),
    [
        (TASK, "stacked"),
        *((task, "native") for task in (TASK, *OTHERS)),
        *(pytest.param(task, "stacked", marks=pytest.mark.slow) for task in OTHERS),
    ],
    ids=str,
)
def test_snapshots_that_are_measured_together_have_the_labels_of_each_alone(task, method, monkeypatch):
    family = Elman(input_size=task.input_size, hidden_size=4, output_size=task.output_size)
    values = {"delay": torch.tensor([1.0, 2, 3], dtype=torch.float64)} if "delay" in task.varying else {}
    names, own_models = GENERAL, (task, Members(0, IDS, values))
    snapshots = [fresh_params(family, seed, IDS) for seed in range(3)]
    apart = [labels.measure(names, family, params, *own_models, method=method) for params in snapshots]
    stacked = {name: torch.cat([params[name] for params in snapshots]) for name in snapshots[0]}
    expected = {name: torch.cat([one[name] for one in apart]) for name in apart[0]}
    drawn = []
    sample = type(task).sample
    monkeypatch.setattr(type(task), "sample", lambda self, *given: drawn.append(given[3]) or sample(self, *given))
    # Of the same sequences, the last bits of sums over a stack may depend on how many models it has.
    agree(labels.measure(names, family, stacked, *own_models, method=method), expected, 1e-12)
    once = len(drawn)
    monkeypatch.setattr(labels, "CPU_BYTES", 1)
    agree(labels.measure(names, family, stacked, *own_models, method=method), expected, 1e-12)
    monkeypatch.setattr(labels.inputs, "KEPT", 0)
    monkeypatch.setitem(labels.MODELS_TOGETHER, method, 2)
    agree(labels.measure(names, family, stacked, *own_models, method=method), expected, 1e-12)
    assert once < len(drawn) / 3


def test_tangents_that_leave_the_range_of_numbers_between_two_scalings_are_followed_all_the_same():
    family = Linear(input_size=1, hidden_size=3, output_size=2)
    scales = [1e-25, 0.5, 1e20, 0.0]
    params = {name: value.double() for name, value in fresh_params(family, 0, [*IDS, "d"]).items()}
    params["a"] = torch.stack([scale * torch.eye(3, dtype=torch.float64) for scale in scales])
    # Without input the state stays at its start, whatever the scale.
    params = {name: value * (name == "a") for name, value in params.items()}
    own = Driven(family, params, None, Members(0, [*IDS, "d"]), "native")
    assert own.method == "native"
    growth = own.trajectory.log_growth
    assert growth.shape[1] == driven.WINDOW
    for place, scale in enumerate(scales):
        expected = math.log(scale) if scale else -math.inf
        assert torch.allclose(growth[place], growth.new_tensor(expected), rtol=1e-12)
