"""Learners: the stacked optimiser against torch.optim, quarantine, and planted structure."""

import numpy as np
import pytest
import torch

from tests.members import gated, sized_for
from tests.weightspace.emulated_graph import emulate
from weightspace import families
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.rollout import Streams, generator, rollout
from weightspace.rollout.noise import draw_noise
from weightspace.spec import Axis, TensorSpec, WeightSpec
from zoo_builder import learning, tasks
from zoo_builder.learning.base import Run, fresh_params
from zoo_builder.learning.batches import UPDATES_PER_DRAW
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.exams import Exams
from zoo_builder.learning.optimiser import Hyperparameters, StackedAdamW
from zoo_builder.learning.planted import Planted
from zoo_builder.learning.schedule import Schedule
from zoo_builder.members import Members
from zoo_builder.tasks.copy import Copy
from zoo_builder.tasks.delayed_recall import DelayedRecall
from zoo_builder.tasks.n_parity import NParity

TASK = DelayedRecall(num_steps=6, delay=2)
FAMILY = Elman(input_size=1, hidden_size=5, output_size=2, nonlinearity="relu")
IDS = [f"model-{i}" for i in range(6)]
SETTINGS = {
    "learning_rate": torch.tensor([1e-3, 1e-2, 3e-2, 5e-3, 2e-3, 1e-2], dtype=torch.float64),
    "weight_decay": torch.tensor([0.0, 0.1, 0.5, 0.0, 0.2, 0.3], dtype=torch.float64),
    "clip": torch.tensor([0.0, 0.01, 10.0, 0.1, 0.0, 1.0], dtype=torch.float64),
    "init_scale": torch.tensor([1.0, 0.5, 1.5, 1.0, 2.0, 1.0], dtype=torch.float64),
}


def learn(learner, snapshots, ids=IDS, settings=SETTINGS, family=FAMILY, **options):
    return learner.learn(family, TASK, Members(0, ids, {}, settings), snapshots, Run(**options))


def one_by_one(family, settings, num_updates, batch_size):
    """The same models, each on its own: torch.optim.AdamW, torch's own clipping, one model after another."""
    finals = []
    params = fresh_params(family, 0, IDS)
    for m, model_id in enumerate(IDS):
        own = {name: tensor[m].clone() for name, tensor in params.items()}
        for name in family.spec.recurrent():
            own[name] = own[name] * float(settings["init_scale"][m])
        leaves = [tensor.requires_grad_() for tensor in own.values()]
        optimiser = torch.optim.AdamW(
            leaves, lr=float(settings["learning_rate"][m]), weight_decay=float(settings["weight_decay"][m])
        )
        streams = Streams(0, [model_id], "train")
        for update in range(num_updates):
            if update % UPDATES_PER_DRAW == 0:
                batches = TASK.sample({}, streams, UPDATES_PER_DRAW * batch_size, "train").split(batch_size)
            batch = batches[update % UPDATES_PER_DRAW]
            x = {name: tensor[None] for name, tensor in own.items()}
            outputs = rollout(family, x, batch.x, batch.start, method="sequential").outputs
            optimiser.zero_grad()
            TASK.loss(outputs, batch)[0].backward()
            if settings["clip"][m] > 0:
                torch.nn.utils.clip_grad_norm_(leaves, float(settings["clip"][m]))
            optimiser.step()
        finals.append({name: tensor.detach() for name, tensor in own.items()})
    return {name: torch.stack([final[name] for final in finals]) for name in params}


@pytest.mark.parametrize("method", ["native", "stacked"])
@pytest.mark.parametrize("family", [FAMILY, GRU(input_size=1, hidden_size=3, output_size=2)], ids=str)
def test_a_stack_learns_what_each_model_learns_alone(family, method):
    num_updates = UPDATES_PER_DRAW + 3
    learned = learn(BPTT(num_updates=num_updates, batch_size=4), [num_updates], family=family, method=method)
    alone = one_by_one(family, SETTINGS, num_updates, 4)
    for name, tensor in alone.items():
        torch.testing.assert_close(learned.params[name][:, 0], tensor, atol=2e-6, rtol=1e-5)
    assert learned.diverged_step.tolist() == [-1] * 6


@pytest.mark.parametrize("fused", [True, False])
def test_the_optimiser_is_adamw_with_clipping(fused):
    spec = WeightSpec(
        axes={"hidden": Axis(size=3, kind="hidden", permutable=True)},
        tensors={"w": TensorSpec(axes=("hidden", "hidden")), "b": TensorSpec(axes=("hidden",))},
        states={"h": "hidden"},
    )
    draws = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(4, 3, 3, generator=draws), "b": torch.randn(4, 3, generator=draws)}
    rate, decay, clip = (
        torch.tensor([1e-3, 1e-1, 1e-2, 1.0]),
        torch.tensor([0.0, 0.3, 1.0, 0.1]),
        torch.tensor([0, 0.5, 1, 9]),
    )
    stacked = StackedAdamW(spec, params, Hyperparameters(rate, decay, clip), fused=fused)
    alone = [{k: v[m].clone().requires_grad_() for k, v in params.items()} for m in range(4)]
    optimisers = [
        torch.optim.AdamW(own.values(), lr=float(rate[m]), weight_decay=float(decay[m])) for m, own in enumerate(alone)
    ]
    for _ in range(20):
        gradients = {k: torch.randn(v.shape, generator=draws) for k, v in params.items()}
        stacked.update(torch.zeros(4), gradients)
        for m, own in enumerate(alone):
            for name, tensor in own.items():
                tensor.grad = gradients[name][m].clone()
            if clip[m] > 0:
                torch.nn.utils.clip_grad_norm_(own.values(), float(clip[m]))
            optimisers[m].step()
    for name, tensor in stacked.params().items():
        torch.testing.assert_close(tensor, torch.stack([own[name].detach() for own in alone]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("poison", ["loss", "gradient", "params"])
def test_a_diverging_model_freezes_and_never_touches_its_neighbours(poison, fused):
    family, draws = FAMILY, torch.Generator().manual_seed(0)
    params = fresh_params(family, 0, IDS)
    rate = torch.full((6,), 1e-2)
    settings = Hyperparameters(rate, torch.zeros(6), torch.ones(6))
    with_it, without = (StackedAdamW(family.spec, params, settings, fused=fused) for _ in range(2))
    for update in range(1, 6):
        gradients = {k: torch.randn(v.shape, generator=draws) for k, v in params.items()}
        without.update(torch.zeros(6), gradients)
        losses, poisoned = torch.zeros(6), {k: v.clone() for k, v in gradients.items()}
        if update == 3:
            before = {k: v[2].clone() for k, v in with_it.params().items()}
            if poison == "loss":
                losses[2] = torch.inf
            elif poison == "gradient":
                poisoned["weight_hh.0"][2, 0, 0] = torch.nan
            else:
                with_it.state.row[2, 0] = torch.inf
                before["weight_ih.0"].view(-1)[0] = torch.inf
        with_it.update(losses, poisoned)
    others = [0, 1, 3, 4, 5]
    for name, tensor in with_it.params().items():
        assert torch.equal(tensor[others], without.params()[name][others])
        assert torch.equal(tensor[2], before[name])
    assert with_it.diverged_step.tolist() == [-1, -1, 3, -1, -1, -1]


def test_rows_have_the_same_bytes_however_many_threads_move_them(monkeypatch):
    def moved(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            draws = torch.Generator().manual_seed(0)
            params = fresh_params(FAMILY, 0, IDS)
            optimiser = StackedAdamW(
                FAMILY.spec, params, Hyperparameters(torch.full((6,), 1e-2), torch.zeros(6), torch.ones(6)), fused=True
            )
            for _ in range(20):
                gradients = {k: torch.randn(v.shape, generator=draws) for k, v in params.items()}
                optimiser.update(torch.zeros(6), gradients)
            return optimiser.state.row
        finally:
            torch.set_num_threads(before)

    alone = moved(3)
    # Rows as small as these are moved by one thread, unless even a single number is worth another.
    monkeypatch.setattr("zoo_builder.learning.fused.WORTH_A_THREAD", 1)
    assert torch.equal(moved(3), alone)


@pytest.mark.parametrize("method", ["native", "stacked"])
def test_a_model_that_diverges_keeps_its_slot_and_its_last_finite_params(method):
    learner = BPTT(num_updates=6, batch_size=4)
    wild = SETTINGS | {"learning_rate": SETTINGS["learning_rate"].clone()}
    # Decay at this rate multiplies the params by 5e29 at every update: the second one overflows.
    wild["learning_rate"][2] = 1e30
    learned, calm = (learn(learner, [0, 1, 2, 6], settings=own, method=method) for own in (wild, SETTINGS))
    assert learned.diverged_step.tolist() == [-1, -1, 2, -1, -1, -1]
    others = [0, 1, 3, 4, 5]
    for name, tensor in learned.params.items():
        assert tensor.isfinite().all()
        assert torch.equal(tensor[others], calm.params[name][others])
        assert torch.equal(tensor[2, 1], tensor[2, 3])


KINDS = [kind.examples()[0] for kind in families.available().values()]


@pytest.mark.parametrize("family", KINDS, ids=lambda family: type(family).__name__)
def test_captured_updates_are_the_updates(family, monkeypatch):
    family = sized_for(family, TASK)
    learner = BPTT(num_updates=UPDATES_PER_DRAW + 2, batch_size=3)
    settings = {**SETTINGS, "learning_rate": torch.tensor([1e-3, 1e-2, 3e38, 5e-3, 2e-3, 1e-2], dtype=torch.float64)}
    called = learn(learner, [0, 5, 10], family=family, settings=settings)
    graphs = emulate(monkeypatch)
    captured = learn(learner, [0, 5, 10], family=family, settings=settings)
    assert [graph.replays for graph in graphs] == [10]
    for name, tensor in called.params.items():
        assert torch.equal(captured.params[name], tensor), name
    assert torch.equal(captured.diverged_step, called.diverged_step)
    assert captured.diverged_step[2] > 0


@pytest.mark.parametrize("family", KINDS, ids=lambda family: type(family).__name__)
def test_what_autograd_keeps_of_a_model_is_within_the_estimate(family):
    task = Copy(num_symbols=6, length=5, max_delay=10)
    family = sized_for(family, task, hidden_size=16)
    params = {name: tensor.requires_grad_() for name, tensor in fresh_params(family, 0, IDS).items()}
    streams = Streams(0, IDS, "train")
    batch = task.sample({}, streams, 8, "train")
    noise = draw_noise(family.spec, streams, task.num_steps, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        task.loss(rollout(family, params, batch.x, batch.start, noise=noise).outputs, batch)
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    estimate = BPTT(batch_size=8).bytes_per_model(family, task)
    assert estimate / 10 < sum(memory.values()) / len(IDS) < estimate


def examined() -> tuple[BPTT, tuple]:
    """A learner with everything that changes from update to update, and what it learns from."""
    task = NParity(max_n=4, n=4, heads="many")
    family = gated(task, 6)
    exams = Exams(every=5, sequences=32, threshold=0.55, stop=True, curriculum=True)
    schedule = Schedule(shape="cosine", warm_up=3)
    learner = BPTT(num_updates=40, batch_size=8, learning_rate=3e-2, exams=exams, schedule=schedule)
    return learner, (family, task, Members(0, IDS), [0, 20, 40])


def test_captured_updates_heed_schedules_exams_and_stops(monkeypatch):
    learner, arguments = examined()
    called = learner.learn(*arguments)
    # What is stopped, and what is not, or nothing would be seen here.
    assert called.records["stopped_step"][:, -1].isnan().unique().tolist() == [False, True]
    graphs = emulate(monkeypatch)
    captured = learner.learn(*arguments)
    assert len(graphs) == 2
    for name, tensor in called.params.items():
        assert torch.equal(captured.params[name], tensor), name
    for name, record in called.records.items():
        torch.testing.assert_close(captured.records[name], record, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("task", [kind.examples()[-1] for kind in tasks.available().values()], ids=str)
def test_the_loss_of_every_task_can_be_captured(task, monkeypatch):
    family = gated(task, 3)
    learner = BPTT(num_updates=3, batch_size=2)
    called = learner.learn(family, task, Members(0, IDS[:2]), [3])
    graphs = emulate(monkeypatch)
    captured = learner.learn(family, task, Members(0, IDS[:2]), [3])
    assert [graph.replays for graph in graphs] == [3]
    for name, tensor in called.params.items():
        assert torch.equal(captured.params[name], tensor), name


@pytest.mark.parametrize("task", [kind.examples()[-1] for kind in tasks.available().values()], ids=str)
def test_every_task_is_learned_natively_as_it_is_by_autograd(task):
    family = gated(task, 5)
    # Several updates of one draw, and a part of the next.
    native, stacked = (
        BPTT(num_updates=UPDATES_PER_DRAW + 2, batch_size=3).learn(
            family, task, Members(0, IDS), [1, UPDATES_PER_DRAW + 2], Run(method=method)
        )
        for method in ("native", "stacked")
    )
    for name, tensor in stacked.params.items():
        torch.testing.assert_close(native.params[name], tensor, atol=2e-5, rtol=1e-4)


def test_snapshots_do_not_depend_on_how_long_learning_goes_on():
    short = learn(BPTT(num_updates=3, batch_size=4), [0, 3])
    long = learn(BPTT(num_updates=10, batch_size=4), [10, 3, 0])
    assert (short.steps, long.steps) == ((0, 3), (0, 3, 10))
    for name, tensor in short.params.items():
        assert torch.equal(tensor, long.params[name][:, :2])
        assert not torch.equal(tensor[:, 0], tensor[:, 1])


def test_step_0_holds_the_scaled_initial_params():
    learned = learn(BPTT(num_updates=1, batch_size=4), [0])
    for m, model_id in enumerate(IDS):
        for name, tensor in FAMILY.init(generator(0, model_id, "init")).items():
            scale = float(SETTINGS["init_scale"][m]) if name == "weight_hh.0" else 1.0
            torch.testing.assert_close(learned.params[name][m, 0], tensor * scale)


@pytest.mark.parametrize("method", ["native", "stacked"])
def test_a_model_learns_the_same_beside_others(method):
    learner = BPTT(num_updates=5, batch_size=4)
    together = learn(learner, [5], method=method)
    pair = learn(learner, [5], ids=IDS[3:5], settings={k: v[3:5] for k, v in SETTINGS.items()}, method=method)
    # With MKL told to be reproducible (see conftest) not a bit depends on the stack; elsewhere the last ones may.
    tolerance = 0 if torch.backends.mkl.is_available() else 1e-5
    for name, tensor in together.params.items():
        torch.testing.assert_close(tensor[3:5], pair.params[name], atol=tolerance, rtol=tolerance)


def test_learning_lowers_the_loss_and_reports_progress():
    seen = []
    learner = BPTT(num_updates=150, batch_size=8, learning_rate=1e-2)
    learned = learn(learner, [0, 150], settings={}, progress=seen.append)
    assert seen == list(range(1, 151))
    batch = TASK.sample({}, Streams(1, IDS, "test"), 100, "test")
    before, after = (
        TASK.loss(rollout(FAMILY, {k: v[:, i] for k, v in learned.params.items()}, batch.x).outputs, batch)
        for i in range(2)
    )
    assert (after < before - 0.05).sum() >= 4


@pytest.mark.parametrize("fused", [True, False])
def test_trained_params_stay_in_their_domain(fused):
    spec = WeightSpec(
        axes={"hidden": Axis(size=2, kind="hidden", permutable=True)},
        tensors={
            "tau": TensorSpec(axes=("hidden",), domain="at_least_1"),
            "rate": TensorSpec(axes=("hidden",), domain="positive"),
            "bias": TensorSpec(axes=("hidden",)),
            "mask": TensorSpec(axes=("hidden",), role="mask"),
        },
        states={"h": "hidden"},
    )
    params = {name: torch.full((1, 2), 1.0) for name in spec.tensors}
    settings = Hyperparameters(torch.tensor([5.0]), torch.zeros(1), torch.zeros(1))
    optimiser = StackedAdamW(spec, params, settings, fused=fused)
    optimiser.update(torch.zeros(1), {name: torch.ones(1, 2) for name in spec.trained})
    moved = {name: tensor[0, 0].item() for name, tensor in optimiser.params().items()}
    assert moved == {"tau": 1.0, "rate": pytest.approx(1e-6), "bias": pytest.approx(-4.0)}


def test_a_planted_matrix_is_rank_one_but_for_its_noise():
    family = Elman(input_size=1, hidden_size=12, output_size=1)
    ids = [f"planted-{i}" for i in range(400)]
    learned = Planted().learn(family, None, Members(3, ids), [0])
    matrices = learned.params["weight_hh.0"][:, 0].double().numpy()
    assert learned.steps == (0,)
    singular = np.linalg.svd(matrices, compute_uv=False)
    np.testing.assert_allclose(singular[:, 0], 1.5, atol=0.15)
    assert singular[:, 1].max() < 0.15
    cosines = np.trace(matrices, axis1=1, axis2=2) / 1.5
    # Uniform on [-1, 1]: mean 0 and variance 1/3, within four standard errors for 400 draws.
    assert abs(cosines.mean()) < 4 * np.sqrt(1 / 3 / 400)
    assert cosines.var() == pytest.approx(1 / 3, abs=0.06)
    fresh = family.init(generator(3, ids[7], "init"))
    assert torch.equal(learned.params["weight_ih.0"][7, 0], fresh["weight_ih.0"])


def test_without_noise_the_planted_eigenvalue_is_the_gain_times_the_cosine():
    family = Elman(input_size=1, hidden_size=6, output_size=1)
    learned = Planted(gain=2.0, noise=0.0).learn(family, None, Members(0, ["a", "b", "c"]), [0])
    for matrix in learned.params["weight_hh.0"][:, 0].double().numpy():
        largest = max(np.linalg.eigvals(matrix), key=abs)
        assert largest.real == pytest.approx(np.trace(matrix), abs=1e-6)
        assert np.linalg.norm(matrix) == pytest.approx(2.0, abs=1e-6)


def test_planting_needs_one_recurrent_matrix():
    with pytest.raises(ValueError, match=r"'weight_hh\.0' with 3 row"):
        Planted().learn(GRU(input_size=1, hidden_size=3, output_size=1), None, Members(0, ["a"]), [0])


def test_a_planted_mode_needs_two_units():
    learned = Planted().learn(Elman(input_size=1, hidden_size=2, output_size=1), None, Members(0, ["a"]), [0])
    assert learned.params["weight_hh.0"].isfinite().all()
    with pytest.raises(ValueError, match="this family has a single unit; give it at least 2"):
        Planted().learn(Elman(input_size=1, hidden_size=1, output_size=1), None, Members(0, ["a"]), [0])


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("BPPT", {}, "Did you mean 'BPTT'"),
        ("BPTT", {"learningrate": 1}, "Did you mean 'learning_rate'"),
        ("BPTT", {"learning_rate": 0.0}, "above 0"),
        ("BPTT", {"clip": -1.0}, "0 or more"),
        ("BPTT", {"batch_size": 0}, "at least 1"),
    ],
)
def test_a_wrong_learner_is_refused_with_the_way_out(name, fields, message):
    with pytest.raises(ValueError, match=message):
        learning.load(name, fields)


def test_learning_refuses_what_does_not_fit():
    learner = BPTT(num_updates=3, batch_size=2)
    with pytest.raises(ValueError, match="needs a task"):
        learner.learn(FAMILY, None, Members(0, IDS), [0])
    with pytest.raises(ValueError, match="from 0 to 3"):
        learn(learner, [4])
    with pytest.raises(ValueError, match="`output_size` of Elman is 3, but DelayedRecall needs 2"):
        learn(learner, [0], family=Elman(input_size=1, hidden_size=2, output_size=3))
