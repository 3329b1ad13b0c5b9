"""Whole updates made in C, several in one call: to the last bit what is made update by update."""

import dataclasses
from functools import partial

import pytest
import torch

from tests.members import sized_for
from tests.zoo_builder.linear_family import Linear
from weightspace import families
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.rollout import Streams, native
from weightspace.rollout.native import can_descend_on, descend, descend_on
from zoo_builder.bench.case import cases, draw
from zoo_builder.bench.methods import Native
from zoo_builder.learning.base import Run, fresh_params
from zoo_builder.learning.batches import UPDATES_PER_DRAW, BatchSource, Exercise
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.exams import Exams
from zoo_builder.learning.optimiser import Hyperparameters, StackedAdamW
from zoo_builder.learning.schedule import Schedule
from zoo_builder.members import Members
from zoo_builder.tasks.adding import Adding
from zoo_builder.tasks.delayed_recall import DelayedRecall
from zoo_builder.tasks.formal_language import FormalLanguage
from zoo_builder.tasks.n_parity import NParity

IDS = [f"model-{i}" for i in range(5)]
# The third one diverges at its second update.
SETTINGS = {
    "learning_rate": torch.tensor([1e-3, 1e-2, 3e38, 5e-3, 2e-2], dtype=torch.float64),
    "clip": torch.tensor([0.0, 0.01, 1.0, 0.1, 1.0], dtype=torch.float64),
    "weight_decay": torch.tensor([0.0, 0.1, 0.0, 0.3, 0.0], dtype=torch.float64),
    # The last one never stops.
    "exams.threshold": torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0], dtype=torch.float64),
}
PARITY = NParity(max_n=4, n=4, heads="many")
LESSONS = {
    "schedule": (DelayedRecall(num_steps=12, delay=2), 21, {"schedule": Schedule(shape="cosine", warm_up=3)}),
    "squared error": (Adding(num_steps=9), 5, {}),
    "weights of its own for each batch": (FormalLanguage(mb=1, mc=-2, md=2, max_n=5, length=20), 6, {}),
    "stops": (PARITY, 8, {"exams": Exams(every=7, sequences=32, threshold=0.55, stop=True)}),
    "curriculum": (PARITY, 8, {"exams": Exams(every=5, sequences=32, threshold=0.55, curriculum=True)}),
}
KINDS = [kind.examples()[0] for kind in families.available().values()]


def learned(family, lessons, **options):
    task, batch_size, fields = LESSONS[lessons]
    learner = BPTT(num_updates=22, batch_size=batch_size, **fields)
    arguments = (sized_for(family, task), task, Members(0, IDS, {}, SETTINGS), [0, 5, 20, 22])
    return learner.learn(*arguments, Run(method="native", **options))


def same(one, other):
    assert torch.equal(one.diverged_step, other.diverged_step)
    assert one.params.keys() == other.params.keys()
    for name, tensor in one.params.items():
        assert torch.equal(tensor, other.params[name]), name
    for name, record in one.records.items():
        torch.testing.assert_close(record, other.records[name], rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def calls(monkeypatch):
    """How many updates each call of C made."""
    made = []

    def counted(*arguments):
        made.append(arguments[-1].updates)
        return descend_on(*arguments)

    monkeypatch.setattr(native, "descend_on", counted)
    return made


@pytest.mark.parametrize("lessons", LESSONS)
@pytest.mark.parametrize("family", KINDS, ids=lambda family: type(family).__name__)
def test_updates_in_one_call_are_those_made_one_by_one(family, lessons, calls, monkeypatch):
    # Without a start, so that a family which can read one is made to learn in C, too.
    family = sized_for(family, LESSONS[lessons][0])
    together = learned(family, lessons)
    # From snapshot or exam to the next, and no more than are drawn together.
    ends = {"stops": [5, 2, 1, 6, 2, 4, 1, 1], "curriculum": [5, 5, 5, 5, 2]}.get(lessons, [5, 3, 8, 4, 2])
    assert calls == (ends if can_descend_on(family) else [])
    monkeypatch.setattr(native, "can_descend_on", lambda family: False)
    same(together, learned(family, lessons))
    assert len(calls) == (len(ends) if can_descend_on(family) else 0)
    assert together.diverged_step[2] > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noisy(Linear):
    """The linear network with noise in its state."""

    def declare(self):
        return dataclasses.replace(super().declare(), noise={"state": "hidden"})

    def step(self, params, state, x, noise):
        return {"h": super().step(params, state, x, {})["h"] + 0.1 * noise["state"]}


def test_a_family_with_noise_learns_in_c_what_it_learns_by_autograd(calls):
    family, task = Noisy(input_size=2, output_size=1, hidden_size=4), Adding(num_steps=6)
    assert can_descend_on(family)
    natively, by_torch = (
        BPTT(num_updates=UPDATES_PER_DRAW + 2, batch_size=3).learn(
            family, task, Members(0, IDS), [UPDATES_PER_DRAW + 2], Run(method=method)
        )
        for method in ("native", "stacked")
    )
    assert calls == [UPDATES_PER_DRAW, 2]
    for name, tensor in by_torch.params.items():
        torch.testing.assert_close(natively.params[name], tensor, atol=2e-5, rtol=1e-4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started(Linear):
    """The linear network whose first state is trained."""

    def initial_state(self, params, start):
        return {"h": params["a"][0].expand(start.shape[0], -1)}


def test_a_family_whose_first_state_is_trained_learns_update_by_update(calls):
    family, task = Started(input_size=2, output_size=1, hidden_size=4), Adding(num_steps=6)
    assert not can_descend_on(family)
    BPTT(num_updates=3, batch_size=3).learn(family, task, Members(0, IDS), [3], Run(method="native"))
    assert calls == []


def test_the_number_of_threads_changes_nothing():
    family, before = KINDS[0], torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(learned(family, "schedule"))
    finally:
        torch.set_num_threads(before)
    same(found[0], found[1])
    same(found[0], found[2])


def test_progress_is_told_of_every_update():
    seen = []
    learned(Elman(input_size=1, hidden_size=3, output_size=1), "stops", progress=seen.append)
    assert seen == list(range(1, 23))


def test_sequences_are_the_same_however_many_are_taken_at_once():
    task = DelayedRecall(num_steps=6, delay=2)
    family = Elman(input_size=task.input_size, hidden_size=3, output_size=task.output_size)
    whole, parts = (BatchSource(Exercise(family, task, Streams(0, IDS, "train"), 3)) for _ in range(2))
    expected = [whole.take(update, UPDATES_PER_DRAW) for update in (0, UPDATES_PER_DRAW)]
    found, update = [], 0
    for most in (3, 1, 100, 2, 100):
        found.append(parts.take(update, most))
        update += found[-1].x.shape[2] // 3
    assert [batch.x.shape[2] // 3 for batch in found] == [3, 1, 4, 2, 6]
    for field in ("x", "target"):
        own, others = (torch.cat([getattr(one, field) for one in part], dim=2) for part in (found, expected))
        assert torch.equal(own, others)


def stack(family, models=4, updates=3, batch=5):
    """An optimiser in C, what learns by it, and data for so many updates."""
    ids = [str(model) for model in range(models)]
    rate = torch.full((models,), 1e-2, dtype=torch.float64)
    settings = Hyperparameters(rate, 0 * rate, 0 * rate)
    optimiser = StackedAdamW(family.spec, fresh_params(family, 0, ids), settings, fused=True)
    task = Adding(num_steps=7)
    data = task.sample({}, Streams(0, ids, "train"), updates * batch, "train")
    criterion = task.criterion(data)
    return optimiser, (data.x, data.start, criterion, criterion.weight.expand(updates, *criterion.weight.shape), {})


@pytest.mark.parametrize("family", [GRU(input_size=2, hidden_size=6, output_size=1)], ids=str)
def test_models_that_do_not_learn_are_left_alone_and_have_no_loss(family):
    optimiser, data = stack(family)
    optimiser.stop(torch.tensor([False, True, False, False]))
    before = optimiser.state.row.clone()
    make = partial(descend_on, family, optimiser.params(), family.spec.trained, *data)
    losses = optimiser.update_natively([None] * 3, make)
    moved = (optimiser.state.row != before).any(1)
    assert moved.tolist() == losses.isfinite().tolist() == [True, False, True, True]


def test_losses_are_those_before_the_last_update():
    family = GRU(input_size=2, hidden_size=6, output_size=1)
    (optimiser, (x, start, criterion, weights, _)), (shorter, _) = stack(family), stack(family)
    trained, half = family.spec.trained, dataclasses.replace(criterion, target=criterion.target[:, :, :10])
    arguments = (family, optimiser.params(), trained, x, start, criterion, weights, {})
    losses = optimiser.update_natively([None] * 3, partial(descend_on, *arguments))
    arguments = (family, shorter.params(), trained, x[:, :, :10], start[:, :10], half, weights[:2], {})
    shorter.update_natively([None] * 2, partial(descend_on, *arguments))
    last = dataclasses.replace(criterion, target=criterion.target[:, :, 10:])
    expected, _ = descend(family, shorter.params(), trained, x[:, :, 10:], start[:, 10:], last, {})
    assert torch.equal(losses, expected)


def test_what_does_not_fit_is_refused():
    family = Elman(input_size=2, hidden_size=6, output_size=1)
    optimiser, data = stack(family)
    make = partial(descend_on, family, optimiser.params(), family.spec.trained)
    with pytest.raises(ValueError, match=r"weights of shape .*; \(2, 4, 1\) of torch.float32 was expected"):
        optimiser.update_natively([None] * 2, partial(make, *data))
    with pytest.raises(ValueError, match="2 updates have 15 sequences"):
        optimiser.update_natively([None] * 2, partial(make, *data[:3], data[3][:2], {}))
    scattered = {
        name: tensor.transpose(0, -1).contiguous().transpose(0, -1) for name, tensor in optimiser.params().items()
    }
    make = partial(descend_on, family, scattered, family.spec.trained, *data)
    with pytest.raises(ValueError, match="does not lie in one piece"):
        optimiser.update_natively([None] * 3, make)
    started = Started(input_size=2, output_size=1, hidden_size=4)
    make = partial(descend_on, started, optimiser.params(), started.spec.trained, *data)
    with pytest.raises(ValueError, match="cannot be made in C alone"):
        optimiser.update_natively([None] * 3, make)


def test_the_benchmark_makes_the_updates_it_counts():
    (case,) = cases(["LSTM"], [6], [3], [7], batch=4, sizes=(3, 5))
    together, apart = (Native(case, draw(case)) for _ in range(2))
    losses = together.update(UPDATES_PER_DRAW + 3)
    for _ in range(UPDATES_PER_DRAW + 3):
        own = apart.update()
    assert torch.equal(losses, own)
    for name, tensor in together.params().items():
        assert torch.equal(tensor, apart.params()[name])
