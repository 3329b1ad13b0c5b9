"""Exams: early stop, thresholds and curricula, against each model learning alone in plain Python."""

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from tests.weightspace.emulated_graph import emulate
from weightspace.data.datamodule import ZooDataModule
from weightspace.families.leaky import Leaky
from weightspace.rollout import Streams, rollout
from weightspace.store import open_zoo
from zoo_builder import learning
from zoo_builder.build import build
from zoo_builder.learning.base import Run, fresh_params
from zoo_builder.learning.batches import UPDATES_PER_DRAW
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.exams import Exams
from zoo_builder.learning.optimiser import Hyperparameters, StackedAdamW
from zoo_builder.learning.schedule import Schedule
from zoo_builder.members import Members
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.shard import make_shard, stage_shard
from zoo_builder.tasks.adding import Adding
from zoo_builder.tasks.delayed_recall import DelayedRecall
from zoo_builder.tasks.n_delayed_match import NDelayedMatch
from zoo_builder.tasks.n_parity import NParity

IDS = [f"model-{i}" for i in range(4)]
BATCH, EVERY, SEQUENCES = 8, 5, 32


def several(*values):
    return torch.tensor(values, dtype=torch.float64)


def family_of(task, hidden_size=12):
    return Leaky(input_size=task.input_size, hidden_size=hidden_size, output_size=task.output_size)


def learn(task, exams, num_updates, snapshots, values=None, settings=None, ids=IDS, **options):
    options = {"batch_size": BATCH, "learning_rate": 1e-2} | options
    learner = BPTT(num_updates=num_updates, exams=exams, **options)
    return learner.learn(family_of(task), task, Members(0, ids, values or {}, settings or {}), snapshots)


def accuracy_of_heads(kind, outputs, x, ns):
    """Share of right answers of the heads that answer for `ns`, from bits and outputs, by definition."""
    found = []
    for head, n in enumerate(ns):
        right = 0
        for b in range(x.shape[1]):
            last = [int(bit) for bit in x[:, b, 0]][-n:]
            answer = sum(last) % 2 if kind is NParity else int(last[0] == last[-1])
            right += (outputs[-1, b, 2 * head + 1] > outputs[-1, b, 2 * head]).item() == bool(answer)
        found.append(right / x.shape[1])
    return found


def heads_at(task, level):
    """The N that the heads answer for at a level, by the words of the three curricula."""
    if task.heads == "single":
        return [level]
    seen = list(range(2, level + 1))
    return seen if task.heads == "many" else seen[-task.window :]


def alone(task, model_id, goal, threshold, num_updates, stop):
    """One model in plain Python with torch.optim: its level, exam score and params after each exam, when it stopped."""
    family, level, reached, stopped = family_of(task), 2, None, None
    own = {name: tensor[0].clone().requires_grad_() for name, tensor in fresh_params(family, 0, [model_id]).items()}
    optimiser = torch.optim.AdamW(own.values(), lr=1e-2, weight_decay=0)
    train, exam = Streams(0, [model_id], "train"), Streams(0, [model_id], "exam")
    waiting, trace = [], []
    for update in range(num_updates + 1):
        stacked = {name: tensor[None] for name, tensor in own.items()}
        if update and update % EVERY == 0:
            batch = task.sample({"n": several(level)}, exam, SEQUENCES, "train")
            with torch.no_grad():
                outputs = rollout(family, stacked, batch.x, method="sequential").outputs[0]
            scores = accuracy_of_heads(type(task), outputs, batch.x[0], heads_at(task, level))
            score = min(sum(scores) / len(scores), scores[-1])
            if score >= threshold and level < goal:
                level += 1
                assert not waiting
            elif score >= threshold:
                reached = update if reached is None else reached
                stopped = update if stop else None
            trace.append((score, level, {name: tensor.detach().clone() for name, tensor in own.items()}))
        if stopped is not None or update == num_updates:
            break
        if not waiting:
            ahead = min(UPDATES_PER_DRAW, EVERY - update % EVERY)
            waiting = task.sample({"n": several(level)}, train, ahead * BATCH, "train").split(BATCH)
        batch = waiting.pop(0)
        optimiser.zero_grad()
        task.loss(rollout(family, stacked, batch.x, method="sequential").outputs, batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        with torch.no_grad():
            optimiser.step()
            own["tau"].clamp_(min=1)
    return trace, reached, stopped


@pytest.mark.parametrize(
    "task",
    [
        NDelayedMatch(max_n=4, n=4),
        NParity(max_n=4, n=4, heads="many"),
        NParity(max_n=4, n=4, heads="sliding", window=2),
    ],
    ids=lambda task: task.heads,
)
def test_each_model_goes_through_the_curriculum_as_it_does_alone(task):
    goals, thresholds, num_updates = [4, 3, 2, 4], [0.5, 0.55, 0.5, 0.99], 25
    exams = Exams(every=EVERY, sequences=SEQUENCES, curriculum=True, stop=True)
    snapshots = list(range(0, num_updates + 1, EVERY))
    values, settings = {"n": several(*goals)}, {"exams.threshold": several(*thresholds)}
    learned = learn(task, exams, num_updates, snapshots, values, settings)
    levels, scores = learned.records["curriculum_level"], learned.records["exam_score"]
    assert levels[:, 0].tolist() == [2] * 4
    assert scores[:, 0].isnan().all()
    for m, model_id in enumerate(IDS):
        trace, reached, stopped = alone(task, model_id, goals[m], thresholds[m], num_updates, stop=True)
        trace += [trace[-1]] * (len(snapshots) - 1 - len(trace))
        assert levels[m, 1:].tolist() == [level for _, level, _ in trace]
        assert scores[m, 1:].tolist() == pytest.approx([score for score, _, _ in trace])
        for place, (_, _, params) in enumerate(trace, start=1):
            for name, tensor in params.items():
                torch.testing.assert_close(learned.params[name][m, place], tensor, atol=1e-5, rtol=1e-4)
        for name, expected in (("steps_to_threshold", reached), ("stopped_step", stopped)):
            found = learned.records[name][m].tolist()
            assert found == pytest.approx([math.nan if expected is None else expected] * len(snapshots), nan_ok=True)
    # The test is worth something only if models advance, stop and do neither.
    assert levels.max() == 4
    assert not learned.records["stopped_step"].isnan().all()
    assert learned.records["stopped_step"].isnan().any()


THIRTY = NParity(max_n=31, n=31, heads="many")


def test_a_curriculum_climbs_to_thirty_heads_and_leaves_those_above_alone():
    exams = Exams(every=1, sequences=4, threshold=0.0, curriculum=True)
    updates = [0, 10, 20, 30]
    learned = learn(THIRTY, exams, 30, updates, batch_size=2, ids=IDS[:1])
    assert learned.records["curriculum_level"].tolist() == [[2, 12, 22, 31]]
    heads = learned.params["weight_ho"][0].unflatten(1, (30, 2))
    for place, update in enumerate(updates):
        changed = (heads[place] != heads[0]).flatten(1).any(1)
        assert changed.tolist() == [True] * update + [False] * (30 - update)


def test_thirty_heads_together_are_learned_as_by_the_sum_of_thirty_losses():
    learned = learn(THIRTY, None, 1, [0, 1], ids=IDS[:1])
    family = family_of(THIRTY)
    own = {name: tensor[0].clone().requires_grad_() for name, tensor in fresh_params(family, 0, IDS[:1]).items()}
    optimiser = torch.optim.AdamW(own.values(), lr=1e-2, weight_decay=0)
    batch = THIRTY.sample({}, Streams(0, IDS[:1], "train"), UPDATES_PER_DRAW * BATCH, "train").split(BATCH)[0]
    stacked = {name: tensor[None] for name, tensor in own.items()}
    last = rollout(family, stacked, batch.x, method="sequential").outputs[0, -1]
    bits = batch.x[0, :, :, 0].long()
    answers = {n: bits[-n:].sum(0) % 2 for n in range(2, 32)}
    sum(cross_entropy(last[:, 2 * n - 4 : 2 * n - 2], answer) for n, answer in answers.items()).backward()
    torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
    optimiser.step()
    for name, tensor in own.items():
        if name != "tau":
            torch.testing.assert_close(learned.params[name][0, 1], tensor.detach(), atol=1e-5, rtol=1e-4)


# So hard for so few updates that nobody answers all of it.
TASK = DelayedRecall(num_steps=10, delay=6)
NEVER, AT_ONCE = 1.0, 0.0


def same(one, other, models=slice(None)):
    assert one.params.keys() == other.params.keys()
    for name, tensor in one.params.items():
        assert torch.equal(tensor[models], other.params[name][models]), name
    for name, record in one.records.items():
        torch.testing.assert_close(record[models], other.records[name][models], rtol=0, atol=0, equal_nan=True)


def test_exams_alone_change_nothing_that_is_learned():
    examined, plain = learn(TASK, Exams(every=3), 10, [0, 5, 10]), learn(TASK, None, 10, [0, 5, 10])
    for name, tensor in plain.params.items():
        assert torch.equal(tensor, examined.params[name])
    assert plain.records == {}
    assert set(examined.records) == {"exam_score", "steps_to_threshold"}


def test_a_model_that_stops_is_frozen_and_its_neighbours_learn_on_as_if_it_had_not():
    thresholds = several(AT_ONCE, NEVER, AT_ONCE, NEVER)
    stopping, going = (
        learn(TASK, Exams(every=4, stop=stop), 14, [0, 4, 5, 14], settings={"exams.threshold": thresholds})
        for stop in (True, False)
    )
    for name, tensor in stopping.params.items():
        assert torch.equal(tensor[1::2], going.params[name][1::2])
        assert torch.equal(tensor[::2, :2], going.params[name][::2, :2])
        assert torch.equal(tensor[::2, 2:], tensor[::2, 1:2].expand_as(tensor[::2, 2:]))
    assert not torch.equal(stopping.params["weight_hh"][::2, 2], going.params["weight_hh"][::2, 2])
    torch.testing.assert_close(
        stopping.records["stopped_step"][:, 0], several(4, math.nan, 4, math.nan), equal_nan=True
    )
    assert stopping.diverged_step.tolist() == [-1] * 4
    # The last exam of those that stopped is the one after which they did.
    assert torch.equal(stopping.records["exam_score"][::2, 3], going.records["exam_score"][::2, 1])


def test_a_stopped_row_keeps_its_moments():
    family = family_of(TASK)
    params = fresh_params(family, 0, IDS)
    settings = Hyperparameters(torch.full((4,), 0.1), torch.ones(4), torch.ones(4))
    stopped, free = (StackedAdamW(family.spec, params, settings) for _ in "ab")
    draws = torch.Generator().manual_seed(0)
    for update in range(4):
        gradients = {k: torch.randn(v.shape, generator=draws) for k, v in free.params().items()}
        if update == 2:
            before = stopped.state
            stopped.stop(torch.tensor([False, True, False, False]))
        if update == 3:
            gradients["weight_hh"][1] = torch.nan
        for optimiser in (stopped, free):
            optimiser.update(torch.zeros(4), {k: v.clone() for k, v in gradients.items()})
    for name in ("row", "first", "second"):
        now, then, other = (getattr(state, name) for state in (stopped.state, before, free.state))
        assert torch.equal(now[1], then[1])
        assert torch.equal(now[[0, 2, 3]], other[[0, 2, 3]])
    # What has stopped cannot diverge any more.
    assert stopped.diverged_step.tolist() == [-1] * 4
    assert free.diverged_step.tolist() == [-1, 4, -1, -1]


def test_when_all_have_stopped_or_diverged_nothing_is_computed_and_no_byte_differs(monkeypatch):
    drawn = []
    sample = DelayedRecall.sample
    monkeypatch.setattr(DelayedRecall, "sample", lambda task, *given: drawn.append(given[2]) or sample(task, *given))
    wild = {"learning_rate": several(1e-2, 1e-2, 1e30, 1e-2)}
    exams, told, runs = Exams(every=4, sequences=16, stop=True), [], []
    for last in (AT_ONCE, NEVER):
        settings = wild | {"exams.threshold": several(AT_ONCE, AT_ONCE, NEVER, last)}
        learner, drawn[:], told[:] = BPTT(num_updates=60, batch_size=4, exams=exams, weight_decay=1.0), [], []
        members, run = Members(0, IDS, {}, settings), Run(progress=told.append)
        runs.append(learner.learn(family_of(TASK), TASK, members, [0, 4, 30, 60], run))
        assert told == list(range(1, 61))
        # Eight updates are drawn together, and one exam of 16 sequences is held every four updates.
        expected = {32: 1, 16: 1} if last == AT_ONCE else {32: 8, 16: 15}
        assert Counter(drawn) == expected
    same(*runs, models=slice(3))
    assert runs[0].diverged_step.tolist() == [-1, -1, 2, -1]
    assert [params.shape[1] for params in runs[0].params.values()] == [4] * len(runs[0].params)


def test_exams_and_schedules_are_the_same_when_updates_are_captured_as_graphs(monkeypatch):
    task = NParity(max_n=4, n=4, heads="many")
    settings = {"exams.threshold": several(0.4, 0.5, 0.6, 0.7), "schedule.warm_up": several(0, 2, 4, 8)}
    exams, schedule = Exams(every=4, sequences=16, curriculum=True, stop=True), Schedule(shape="cosine")

    def run():
        return learn(task, exams, 24, [0, 8, 24], settings=settings, schedule=schedule)

    plain = run()
    graphs = emulate(monkeypatch)
    same(plain, run())
    # One for the updates, one for the exams.
    assert len(graphs) == 2
    assert plain.records["curriculum_level"].unique().numel() > 1


def test_steps_to_threshold_is_the_first_exam_passed():
    task = NDelayedMatch(max_n=2, n=2)
    exams = Exams(every=5, sequences=64, threshold=0.8)
    learned = learn(task, exams, 60, list(range(0, 61, 5)))
    for scores, steps in zip(learned.records["exam_score"], learned.records["steps_to_threshold"], strict=True):
        passed = [5 * place for place, score in enumerate(scores.tolist()) if score >= 0.8]
        assert steps.tolist() == pytest.approx([passed[0] if passed else math.nan] * 13, nan_ok=True)
    found = learned.records["steps_to_threshold"][:, 0]
    assert len(set(found.tolist())) > 1


def test_exams_are_on_fresh_sequences_of_the_training_split():
    asked = []

    class Watched(DelayedRecall):
        def sample(self, values, streams, batch_size, split):
            asked.append((streams.purpose, batch_size, split))
            return super().sample(values, streams, batch_size, split)

    learn(Watched(num_steps=4, delay=1), Exams(every=2, sequences=20), 4, [4])
    assert [entry for entry in asked if entry[0] == "exam"] == [("exam", 20, "train")] * 2


@pytest.mark.parametrize(
    ("exams", "message"),
    [
        ({"every": 0}, r"`every` \(=0\) of the exams must be at least 1"),
        ({"sequences": 0}, r"`sequences` \(=0\) of the exams"),
        ({"threshold": 1.5}, r"`threshold` \(=1.5\) of the exams must be from 0 to 1"),
        ({"treshold": 0.5}, r"Exams has no option 'treshold'.*'threshold'"),
    ],
)
def test_exams_that_make_no_sense_are_refused_with_the_way_out(exams, message):
    with pytest.raises(ValueError, match=message):
        learning.load("BPTT", {"exams": exams})


def test_a_curriculum_needs_a_task_with_levels():
    with pytest.raises(ValueError, match="Adding declares no `difficulty`"):
        learn(Adding(), Exams(curriculum=True), 1, [0])


RECIPE = Path(__file__).parents[2] / "configs" / "zoo" / "curriculum-parity.yaml"


def tiny_recipe():
    recipe = read_recipe(RECIPE)
    for task in recipe["tasks"]:
        task.update(max_n=3, n=3)
    learning_entry = recipe["learning"] | {"num_updates": 60, "batch_size": 8, "schedule": {"warm_up": 2}}
    learning_entry["exams"] = recipe["learning"]["exams"] | {
        "every": 10,
        "sequences": 32,
        "threshold": {"choice": [0.6, 1.0]},
    }
    families = [{"class": "Leaky", "hidden_size": 6}]
    small = {"snapshots": [0, 30, 60], "models_per_cohort": 6, "shard_size": 6, "labels": ["Performance"]}
    return {**recipe, **small, "families": families, "tasks": recipe["tasks"][:1], "learning": learning_entry}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("curriculum") / "zoo"
    build(tiny_recipe(), path, workers=1)
    return path


def test_the_zoo_of_the_shipped_recipe_says_who_advanced_and_who_stopped(zoo):
    opened = open_zoo(zoo)
    rows = opened.table.to_pylist()
    recorded = ["curriculum_level", "exam_score", "steps_to_threshold", "stopped_step"]
    assert [name for name in opened.table.column_names if name in opened.manifest["labels"]] == sorted(
        [*recorded, "generalisation_gap", "loss", "score"]
    )
    assert all(opened.manifest["labels"][name]["definition"] for name in recorded)
    assert opened.manifest["tasks"]["NParity"]["classes_per_head"] == 2
    models = {row["model_id"]: [r for r in rows if r["model_id"] == row["model_id"]] for row in rows}
    assert len(models) == 18
    for own in models.values():
        assert [row["step"] for row in own] == [0, 30, 60]
        assert own[0]["curriculum_level"] == 2
        assert own[0]["exam_score"] is None
        levels = [row["curriculum_level"] for row in own]
        assert levels == sorted(levels)
        for name in ("stopped_step", "steps_to_threshold"):
            assert len({row[name] for row in own}) == 1
        assert own[0]["stopped_step"] == own[0]["steps_to_threshold"]
        config = json.loads(own[0]["learning_config"])
        assert config["exams"]["threshold"] in (0.6, 1.0)
        if own[2]["stopped_step"] is not None:
            assert levels[2] == 3
            assert own[2]["exam_score"] >= config["exams"]["threshold"]
    assert {row["curriculum_level"] for row in rows} == {2, 3}
    assert len({row["stopped_step"] for row in rows}) > 2
    # Who stopped before the last two snapshots has the same params in both.
    for number, row in enumerate(rows):
        if row["step"] == 60:
            later, earlier = (opened.stack([place]).params for place in (number, number - 1))
            alike = all(torch.equal(later[name], earlier[name]) for name in later)
            assert alike == (row["stopped_step"] is not None and row["stopped_step"] <= 30)


def test_batches_of_a_zoo_say_how_outputs_divide_into_heads(zoo):
    data = ZooDataModule(zoo)
    data.serve(with_rollouts=True)
    batch = next(iter(data.val_dataloader()))
    assert batch.classes_per_head == [2] * len(batch.stacks)


def test_records_of_learning_do_not_depend_on_shards_and_outlive_new_labels(zoo, tmp_path):
    columns = ["model_id", "step", "curriculum_level", "exam_score", "steps_to_threshold", "stopped_step"]
    expected = open_zoo(zoo).table.select(columns)
    plan = make_plan(tiny_recipe() | {"shard_size": 5, "labels": []})
    shards = [make_shard(plan, shard, method="native").table.select(columns) for shard in plan.shards]
    assert pa.concat_tables(shards).equals(expected)
    relabelled = make_plan(tiny_recipe() | {"labels": ["Performance", "MemoryMode"]})
    shutil.copytree(zoo, tmp_path / "zoo")
    for shard in relabelled.shards:
        stage_shard(tmp_path / "zoo", relabelled, shard, ["MemoryMode"], "key", method="native")
    staged = sorted((tmp_path / "zoo").rglob("tables-key/*.parquet"))
    assert pa.concat_tables([pq.read_table(path) for path in staged]).select(columns).equals(expected)


def test_a_learner_is_made_again_from_its_config():
    plan = make_plan(read_recipe(RECIPE))
    learner = plan.cohorts[0].learner
    config = learner.config
    assert learning.load("BPTT", config) == learner
    assert set(plan.cohorts[0].learning_spreads) == {"learning_rate", "exams.threshold"}
    assert "exams" not in learning.load("BPTT", {}).config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exams": {"every": {"integers": [1, 2]}}}, r"`exams.every` of BPTT cannot differ between models"),
        ({"exams": {"threshold": {"uniform": [0.5, 1.2]}}}, r"`threshold` \(=1.2\) of the exams must be from 0 to 1"),
        ({"exams": {"treshold": 0.5}}, r"Exams has no option 'treshold'.*'threshold'"),
        ({"exams": {"stop": 1}}, r"`stop` \(=1\) of Exams must be of type bool"),
        ({"exams": 5}, r"`exams` of BPTT must be a mapping of options, found 5"),
        ({"schedule": "cosine"}, r"`schedule` of BPTT must be a mapping of options, found 'cosine'"),
        ({"schedule": {"shape": "cos"}}, r"`shape` \(='cos'\) of Schedule must be one of"),
        ({"schedule": {"warm_up": {"integers": [0, 60]}}}, r"`schedule.warm_up` \(=60\) must be below"),
    ],
)
def test_options_that_make_no_sense_are_refused_when_the_recipe_is_read(changes, message):
    recipe = tiny_recipe()
    with pytest.raises(ValueError, match=message):
        make_plan({**recipe, "learning": {"class": "BPTT", "num_updates": 60, **changes}})


def test_the_learner_that_a_page_shows_is_one():
    page = (RECIPE.parents[2] / ".docs" / "pages" / "zoos.md").read_text()
    (block,) = re.findall(r"```yaml\n(learning:.*?)```", page, re.DOTALL)
    plan = make_plan({**tiny_recipe(), "learning": yaml.safe_load(block)["learning"]})
    assert plan.cohorts[0].learner.exams == Exams(every=20, threshold=0.9, stop=True, curriculum=True)
    assert plan.cohorts[0].learner.schedule == Schedule(shape="cosine", warm_up=20, final=0.1)


def test_a_recipe_with_a_curriculum_for_a_task_without_levels_is_refused():
    recipe = {**tiny_recipe(), "tasks": [{"class": "Adding"}]}
    with pytest.raises(ValueError, match="Adding declares no `difficulty`"):
        make_plan(recipe)


def curricula(max_n, hidden_size, ids, **options):
    """By kind of heads, on parity: the levels that models reach, and their share of right answers for N = 2 then."""
    level, first = {}, {}
    for heads in ("many", "single"):
        task = NParity(max_n=max_n, n=max_n, heads=heads)
        family, learner = family_of(task, hidden_size), BPTT(**options)
        learned = learner.learn(family, task, Members(0, ids), [learner.num_updates], Run(method="native"))
        level[heads] = learned.records["curriculum_level"][:, 0]
        params = {name: tensor[:, 0] for name, tensor in learned.params.items()}
        batch = task.sample({"n": torch.full((len(ids),), 2.0)}, Streams(1, ids, "judge"), 512, "test")
        first[heads] = task.score_by_head(rollout(family, params, batch.x).outputs, batch)[:, 0]
    return level, first


def test_with_many_heads_a_curriculum_goes_further_and_nothing_is_forgotten():
    exams = Exams(every=10, sequences=64, threshold=0.8, curriculum=True)
    options = {"num_updates": 200, "batch_size": 16, "learning_rate": 1.5e-2, "exams": exams}
    level, first = curricula(8, 20, [f"pupil-{i}" for i in range(5)], **options)
    assert level["many"].mean() > level["single"].mean()
    assert level["single"].min() >= 4
    assert first["many"].min() > 0.95
    assert first["single"].mean() < 0.8


@pytest.mark.slow
def test_the_curricula_of_the_paper_differ_as_it_found():
    """Khajehabdollahi et al. (ICLR 2024): with one head models get on slowly and forget, with many they do neither."""
    exams = Exams(every=20, sequences=128, threshold=0.95, curriculum=True)
    options = {"num_updates": 1200, "batch_size": 32, "learning_rate": 7e-3, "exams": exams}
    level, first = curricula(12, 32, IDS, **options)
    assert level["many"].min() > 1.3 * level["single"].max()
    assert first["many"].min() > 0.95
    assert first["single"].max() < 0.7
