"""What is told to run on CUDA keeps to it: no operation mixes devices, and answers come back to the CPU.

On a pretended CUDA device, so that it is checked everywhere; what numbers a real one gives is for `test_gpu.py` to say.
"""

from pathlib import Path

import pytest
import torch

from tests.members import drive, gated
from tests.weightspace.pretended_cuda import pretended_cuda
from tests.weightspace.zoos import write_zoo
from weightspace import families
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.objectives.contrastive import Contrastive
from weightspace.objectives.emulation import Emulation
from weightspace.objectives.reconstruction import Reconstruction
from weightspace.objectives.state_geometry import StateGeometry
from weightspace.objectives.supervised import Supervised
from weightspace.rollout import Streams, generator, rollout
from zoo_builder import labels, tasks
from zoo_builder.cli import main
from zoo_builder.learning.actor_critic import ActorCritic
from zoo_builder.learning.base import Run
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.exams import Exams
from zoo_builder.members import MULTIPLE, Members
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.shard import make_shard
from zoo_builder.stacks import CUDA_STACK, STACK, models_together
from zoo_builder.tasks.t_maze import TMaze

KINDS = [kind.examples()[0] for kind in families.available().values()]
TASKS = [kind.examples()[-1] for kind in tasks.available().values()]
RECIPE = {
    "families": [{"class": "LSTM", "hidden_size": 2}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 5, "delay": {"integers": [1, 4]}}],
    "learning": {
        "class": "BPTT",
        "num_updates": 2,
        "batch_size": 2,
        "learning_rate": {"choice": [0.01, 1e38]},
        "schedule": {"shape": "cosine", "warm_up": 1},
        "exams": {"every": 1, "sequences": 3, "threshold": 0.4, "stop": True},
    },
    "snapshots": [0, 2],
    "models_per_cohort": 3,
    "labels": [name for name, label in labels.available().items() if label.for_all_families],
    "rollouts": {"sequences": 2},
}


def test_the_pretended_device_is_as_strict_as_a_real_one(monkeypatch):
    with pretended_cuda(monkeypatch):
        here, there = torch.ones(2), torch.ones(2, device="cuda")
        assert (here.device.type, there.device.type) == ("cpu", "cuda")
        assert (there + 1).is_cuda
        assert there.new_zeros(3).is_cuda
        assert there[None].expand(2, -1).sum(0).is_cuda
        assert (here.to(there.device) + there).cpu().tolist() == [2, 2]
        for mixture in (
            lambda: here + there,
            lambda: torch.where(there > 0, there, here),
            lambda: torch.func.vmap(torch.dot)(here[None], there[None]),
            lambda: torch.zeros(2, dtype=torch.float64) * there,
        ):
            with pytest.raises(RuntimeError, match="same device, found"):
                mixture()


@pytest.mark.parametrize("family", KINDS, ids=lambda family: type(family).__name__)
def test_rollouts_keep_to_the_device_of_their_params(family, monkeypatch):
    params = {k: v[None] for k, v in family.spec.random_params(generator(0, "m", "params"), torch.float32).items()}
    here = drive(family, 1, 3, 2, torch.float32)
    expected = rollout(family, params, here.x, here.start, noise=here.noise).outputs
    with pretended_cuda(monkeypatch):
        there = here.to("cuda")
        moved = {k: v.to("cuda") for k, v in params.items()}
        outputs = rollout(family, moved, there.x, there.start, noise=there.noise).outputs
        assert outputs.is_cuda
        assert torch.equal(outputs.cpu(), expected)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_learning_keeps_to_its_device(task, monkeypatch):
    family = gated(task, 3)
    arguments = (family, task, Members(0, ["a", "b"]), [0, 2])
    expected = BPTT(num_updates=2, batch_size=2).learn(*arguments)
    with pretended_cuda(monkeypatch):
        assert task.sample({}, Streams(0, ["a"], "x", "cuda"), 2, "test").x.is_cuda
        learned = BPTT(num_updates=2, batch_size=2).learn(*arguments, Run("cuda"))
        assert not any(tensor.is_cuda for tensor in learned.params.values())
        for name, tensor in expected.params.items():
            assert torch.equal(learned.params[name], tensor), name


@pytest.mark.parametrize("gradient", ["rtrl", "truncated"])
def test_models_that_act_keep_to_their_device(gradient, monkeypatch):
    maze, ids = TMaze(corridor_length=2), ["a", "b"]
    family = families.load("ELSTM", {"input_size": 3, "hidden_size": 3, "output_size": 3})
    learner = ActorCritic(num_updates=3, batch_size=2, segment=3, gradient=gradient)
    arguments = (family, maze, Members(0, ids), [0, 3])
    expected = learner.learn(*arguments).params
    with pretended_cuda(monkeypatch):
        params = learner.learn(*arguments, Run("cuda")).params
        assert not any(tensor.is_cuda for tensor in params.values())
        there = {name: tensor[:, 1].to("cuda") for name, tensor in params.items()}
        returns = labels.measure(["EpisodeReturn"], family, there, maze, Members(0, ids))["episode_return"]
    assert all(torch.equal(params[name], tensor) for name, tensor in expected.items())
    here = {name: tensor[:, 1] for name, tensor in expected.items()}
    again = labels.measure(["EpisodeReturn"], family, here, maze, Members(0, ids))["episode_return"]
    assert torch.equal(returns.cpu(), again)


def test_a_curriculum_keeps_to_its_device(monkeypatch):
    task = tasks.load("NParity", {"max_n": 3, "n": 3, "heads": "many"})
    family = gated(task, 3)
    learner = BPTT(num_updates=2, batch_size=2, exams=Exams(every=1, sequences=4, threshold=0, curriculum=True))
    arguments = (family, task, Members(0, ["a", "b"]), [0, 2])
    expected = learner.learn(*arguments)
    with pretended_cuda(monkeypatch):
        learned = learner.learn(*arguments, Run("cuda"))
        assert not any(record.is_cuda for record in learned.records.values())
    assert expected.records["curriculum_level"].tolist() == [[2, 3], [2, 3]]
    assert torch.equal(learned.records["curriculum_level"], expected.records["curriculum_level"])


def test_a_shard_is_the_same_wherever_it_is_made(monkeypatch):
    plan = make_plan(read_recipe(RECIPE))
    expected = make_shard(plan, plan.shards[0])
    with pretended_cuda(monkeypatch):
        made = make_shard(plan, plan.shards[0], device="cuda")
    assert all(torch.equal(made.params[name], tensor) for name, tensor in expected.params.items())
    assert all(torch.equal(made.rollouts[name], tensor) for name, tensor in expected.rollouts.items())
    assert made.table.schema == expected.table.schema
    for name in expected.table.column_names:
        column = expected.table[name].to_pylist()
        # Snapshots are measured side by side on CUDA, and the last bits of a spectrum heed how many matrices there are.
        told = [pytest.approx(x, rel=1e-12) if isinstance(x, float) else x for x in column]
        assert made.table[name].to_pylist() == told, name


def test_a_label_that_does_not_apply_keeps_to_its_device_too(monkeypatch):
    family, task = KINDS[0], tasks.load("TiledDigits", {})
    params = {k: v[None] for k, v in family.spec.random_params(generator(0, "m", "params")).items()}
    with pretended_cuda(monkeypatch):
        there = {name: tensor.to("cuda") for name, tensor in params.items()}
        found = labels.measure(["LengthGeneralisation"], family, there, task, Members(0, ["m"]))
        assert found["longer_score"].isnan().tolist() == [True]
        assert not found["longer_score"].is_cuda


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("extra", [[], ["--dry_run"]], ids=["build", "dry run"])
def test_a_device_that_is_not_there_is_refused_with_the_way_out(extra, tmp_path, capsys):
    recipe = Path(__file__).parents[1] / "configs" / "zoo" / "quickstart-tiny.yaml"
    options = ["--config", str(recipe), "--out", str(tmp_path / "zoo"), "--device", "cuda"]
    assert main(["build", *options, *extra]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "torch sees no CUDA device here; build with cpu" in told.err
    assert not (tmp_path / "zoo").exists()


def test_stacks_on_cuda_are_large_but_for_memory():
    plan = make_plan(read_recipe({**RECIPE, "models_per_cohort": 3000}, device="cuda"))
    cohort = plan.cohorts[0]
    assert [shard.last - shard.first for shard in plan.shards[:3]] == [1024, 1024, 952]
    assert models_together(cohort, "cpu") == STACK
    assert models_together(cohort, "cuda") == CUDA_STACK
    task = {"class": "DelayedRecall", "num_steps": 1000}
    wide = {**RECIPE, "families": [{"class": "LSTM", "hidden_size": 256}], "tasks": [task]}
    (cohort,) = make_plan(read_recipe({**wide, "learning": {**RECIPE["learning"], "batch_size": 64}})).cohorts
    assert 0 < models_together(cohort, "cuda") < CUDA_STACK
    assert models_together(cohort, "cuda") % MULTIPLE == 0


OBJECTIVES = [Supervised(["trace"]), Emulation(), Contrastive(), Reconstruction(), StateGeometry()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_an_objective_and_its_encoder_keep_to_their_device(objective, monkeypatch, tmp_path):
    torch.manual_seed(0)
    encoder, data = MessagePassing(embedding_dim=8), ZooDataModule(write_zoo(tmp_path / "zoo", models=10), batch_size=6)
    objective.build(8)
    data.serve(objective.targets, objective.needs_rollouts, objective.needs_neighbours)
    encoder.fit_standardisation(data.training_stacks())
    objective.fit_scales(data.training())
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(1)
    expected, _ = objective(encoder, batch)
    with pretended_cuda(monkeypatch):
        encoder.to("cuda")
        objective.to("cuda")
        torch.manual_seed(1)
        loss, _ = objective(encoder, batch.to("cuda"))
        assert loss.is_cuda
        loss.backward()
        assert all(p.grad is None or p.grad.is_cuda for p in encoder.parameters())
    torch.testing.assert_close(loss.detach(), expected.detach())
