"""The same code on CUDA: equal answers to stated tolerance. Off by default; run with `pytest -m gpu -n 0`."""

import copy
import inspect
import logging
import shutil
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.members import EXAMPLES, drive, gated, sized_for
from tests.weightspace.test_captured_encoder import CAPTURED
from tests.weightspace.thresholds import decided
from tests.weightspace.zoos import write_zoo
from weightspace import encoders, families
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.gru import GRU
from weightspace.objectives.emulation import Emulation
from weightspace.objectives.supervised import Supervised
from weightspace.rollout import Captured, Streams, captured, generator, rollout
from weightspace.store import Stack, open_zoo, remove_shard, verify
from weightspace.training.captured import CapturedEncoder
from weightspace.training.embed import embed_rows
from weightspace.training.module import EmbeddingModule, fit
from zoo_builder import labels, tasks
from zoo_builder.build import build, repair
from zoo_builder.learning.base import Run
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.exams import Exams
from zoo_builder.learning.schedule import Schedule
from zoo_builder.members import Members
from zoo_builder.relabel import relabel
from zoo_builder.tasks.delayed_recall import DelayedRecall

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
KINDS = [kind.examples()[0] for kind in families.available().values()]
TASKS = [example for task in tasks.available().values() for example in task.examples()]
RECALL = DelayedRecall(num_steps=6, delay=2)
IDS = [f"model-{i}" for i in range(6)]
RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 4}, {"class": "LSTM", "hidden_size": 3}],
    "tasks": [
        {"class": "DelayedRecall", "num_steps": 6, "delay": {"integers": [1, 4]}},
        {"class": "TiledDigits", "tile_size": 4, "angle": {"uniform": [0, 180]}},
    ],
    "learning": {"class": "BPTT", "num_updates": 12, "batch_size": 4, "learning_rate": {"choice": [0.01, 1e38]}},
    "snapshots": [0, 4, 12],
    "models_per_cohort": 12,
    "shard_size": 8,
    "labels": ["Performance", "Rank", "Memory", "Dynamics"],
    "rollouts": {"sequences": 2},
}


@pytest.fixture(autouse=True, scope="module")
def _cublas_in_the_thread_of_autograd():
    """The first product in a backward pass warns that its thread had no CUDA context: of torch, once, and no fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.ones(2, 2, device="cuda", requires_grad=True)
        (x @ x).sum().backward()


@pytest.fixture(autouse=True)
def _whole_precision():
    """Products of 10-bit numbers, which TensorFloat-32 makes of float32, would not be equal to any tolerance here."""
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def drawn(family, models: int = 4, dtype: torch.dtype = torch.float32) -> dict:
    draws = [family.spec.random_params(generator(0, str(i), "params"), dtype) for i in range(models)]
    return {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}


def on_cuda(tensors: dict) -> dict:
    return {k: v.to("cuda") for k, v in tensors.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_a_stack_on_cuda_does_what_its_models_do_one_by_one_on_the_cpu(family, dtype, tolerance):
    params = drawn(family, dtype=dtype)
    x, start, noise = drive(family, 4, 8, 3, dtype)
    x, _ = decided(family, params, x, tolerance, None, start, noise)
    outputs = rollout(family, on_cuda(params), x.to("cuda"), start.to("cuda"), noise=on_cuda(noise)).outputs
    expected = rollout(family, params, x, start, noise=noise, method="sequential").outputs
    torch.testing.assert_close(outputs.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_gradients_on_cuda_are_those_of_the_cpu(family):
    driven, found = drive(family, 4, 6, 3), []
    for device in ("cpu", "cuda"):
        params = {k: v.to(device).requires_grad_() for k, v in drawn(family, dtype=torch.float64).items()}
        x, start, noise = driven.to(device)
        loss = rollout(family, params, x, start, noise=noise).outputs.square().sum()
        leaves = [params[name] for name in family.spec.trained]
        found.append(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-8, atol=1e-8)


def test_streams_are_the_same_on_cuda_bit_for_bit():
    here, there = Streams(3, ["a", "b"], "train"), Streams(3, ["a", "b"], "train", "cuda")
    assert torch.equal(here.bits(1001), there.bits(1001).cpu())
    assert torch.equal(here.uniform(99), there.uniform(99).cpu())
    assert torch.equal(here.uniform(99, dtype=torch.float64), there.uniform(99, dtype=torch.float64).cpu())
    assert torch.equal(here.integers(7, 99), there.integers(7, 99).cpu())
    # Logarithm and cosine are not the same library's.
    normal = [streams.normal(99, dtype=torch.float64).cpu() for streams in (here, there)]
    torch.testing.assert_close(normal[1], normal[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_learning_on_cuda_begins_as_on_the_cpu(task):
    family = gated(task, 5)
    learner, arguments = BPTT(num_updates=3, batch_size=4), (family, task, Members(0, ["a", "b"]), [0, 3])
    here, there = (learner.learn(*arguments, Run(device)) for device in ("cpu", "cuda"))
    for name, tensor in here.params.items():
        assert torch.equal(there.params[name][:, 0], tensor[:, 0])
        # Where a gradient is all but 0 its sign is rounding, and AdamW moves by the sign: three steps of 3e-3.
        torch.testing.assert_close(there.params[name], tensor, rtol=1e-2, atol=1e-3)


def updates(monkeypatch, learner, arguments, *, captures: bool):
    """What is learned with or without graphs, and how many replays there were."""
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph)))
        if not captures:
            patch.setattr(captured, "on_cuda", lambda tensors: False)
        return learner.learn(*arguments, Run("cuda")), len(replays)


@pytest.mark.parametrize("family", KINDS, ids=lambda family: type(family).__name__)
def test_captured_updates_are_the_updates(family, monkeypatch, caplog):
    family = sized_for(family, RECALL)
    rates = {"learning_rate": torch.tensor([1e-3, 1e-2, 3e38, 5e-3, 2e-3, 1e-2], dtype=torch.float64)}
    arguments = (family, RECALL, Members(0, IDS, {}, rates), [0, 5, 20])
    learner = BPTT(num_updates=20, batch_size=4)
    with_graphs, replays = updates(monkeypatch, learner, arguments, captures=True)
    without, none = updates(monkeypatch, learner, arguments, captures=False)
    assert (replays, none) == (20, 0)
    assert [record for record in caplog.records if record.name == captured.__name__] == []
    assert torch.equal(with_graphs.diverged_step, without.diverged_step)
    assert with_graphs.diverged_step[2] > 0
    for name, tensor in without.params.items():
        torch.testing.assert_close(with_graphs.params[name], tensor, rtol=1e-4, atol=1e-5)


def test_captured_updates_heed_schedules_exams_and_stops(monkeypatch):
    task = tasks.load("NParity", {"max_n": 4, "n": 4, "heads": "many"})
    family = gated(task, 6)
    exams = Exams(every=5, sequences=32, threshold=0.55, stop=True, curriculum=True)
    schedule = Schedule(shape="cosine", warm_up=3)
    learner = BPTT(num_updates=40, batch_size=8, learning_rate=3e-2, exams=exams, schedule=schedule)
    arguments = (family, task, Members(0, IDS), [0, 20, 40])
    found = [updates(monkeypatch, learner, arguments, captures=captures)[0] for captures in (True, False)]
    for name, record in found[1].records.items():
        torch.testing.assert_close(found[0].records[name], record, rtol=0, atol=0.05, equal_nan=True)


def test_what_cannot_be_captured_is_called_after_one_warning_and_harms_no_later_graph(caplog):
    reading = Captured(lambda x: x * float(x.sum()))
    with caplog.at_level(logging.WARNING):
        for scale in (1.0, 2.0, 3.0):
            assert reading(torch.full((2,), scale, device="cuda")).tolist() == [2 * scale**2] * 2
    assert len(caplog.records) == 1
    assert "could not be captured" in caplog.text
    doubling, value = Captured(lambda x: 2 * x), torch.ones(2, device="cuda")
    for _ in range(5):
        value = doubling(value)
    assert value.tolist() == [32, 32]


@pytest.mark.parametrize("family", KINDS, ids=lambda family: type(family).__name__)
def test_labels_measured_on_cuda_are_those_of_the_cpu(family):
    family = sized_for(family, RECALL)
    models = [family.init(generator(0, model_id, "init")) for model_id in IDS]
    params = {name: torch.stack([model[name] for model in models]) for name in family.spec.tensors}
    names = [name for name, label in labels.available().items() if label.for_all_families]
    here, there = (labels.measure(names, family, p, RECALL, Members(0, IDS)) for p in (params, on_cuda(params)))
    assert here.keys() == there.keys()
    for name, column in here.items():
        torch.testing.assert_close(there[name], column, rtol=1e-6, atol=1e-8, equal_nan=True, msg=name)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda") / "zoo"
    assert build(RECIPE, path, device="cuda").built == 8
    return path


def test_a_zoo_built_on_cuda_is_whole_and_says_where(zoo):
    opened = open_zoo(zoo)
    assert verify(zoo) == []
    assert opened.manifest["executor"]["device"] == "cuda"
    assert opened.manifest["executor"]["gpu"] == torch.cuda.get_device_name()
    assert set(opened.table["status"].to_pylist()) == {"ok", "diverged", "untrained"}
    assert None not in opened.table["score"].to_pylist()


def test_on_one_gpu_the_bytes_depend_neither_on_workers_nor_on_where_a_build_was_stopped(zoo, tmp_path):
    build(RECIPE, tmp_path / "two", device="cuda", workers=2)
    assert contents(tmp_path / "two") == contents(zoo)
    shutil.copytree(zoo, tmp_path / "damaged")
    remove_shard(tmp_path / "damaged", 3)
    assert repair(tmp_path / "damaged") == []
    assert contents(tmp_path / "damaged") == contents(zoo)


def test_labels_added_on_cuda_have_the_bytes_of_labels_measured_at_build(zoo, tmp_path):
    bare = {**RECIPE, "labels": ["Performance"]}
    build(bare, tmp_path / "bare", device="cuda")
    relabel(tmp_path / "bare", ["Rank", "Memory", "Dynamics"])
    assert contents(tmp_path / "bare") == contents(zoo)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_an_embedding_is_the_same_on_cuda(family):
    torch.manual_seed(0)
    encoder, stack = MessagePassing().eval(), Stack(family, drawn(family), torch.arange(4))
    expected = encoder([stack])
    torch.testing.assert_close(encoder.to("cuda")([stack.to("cuda")]).cpu(), expected, rtol=1e-3, atol=1e-4)


def test_embeddings_of_a_zoo_are_the_same_on_cuda(tmp_path):
    torch.manual_seed(0)
    encoder, data = MessagePassing().eval(), ZooDataModule(write_zoo(tmp_path / "zoo"))
    expected = embed_rows(encoder, data)
    found = embed_rows(copy.deepcopy(encoder).to("cuda"), data, "cuda")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


class Where(Callback):
    """Notes where an encoder trains, and how its weights move."""

    def __init__(self):
        self.devices, self.losses = set(), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.devices.add(pl_module.device.type)
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize("objective", [Supervised(["trace", "score"]), Emulation()], ids=lambda o: type(o).__name__)
def test_an_encoder_trains_on_cuda(objective, tmp_path):
    torch.manual_seed(0)
    module = EmbeddingModule(MessagePassing(), objective, learning_rate=1e-2)
    where = Where()
    best = fit(module, ZooDataModule(write_zoo(tmp_path / "zoo")), tmp_path / "run", max_epochs=3, callbacks=[where])
    assert where.devices == {"cuda"}
    assert torch.tensor(where.losses).isfinite().all()
    assert best.exists()


def passed(encoder, reader, stacks):
    """Embeddings, and gradients of the encoder's weights by name."""
    encoder.zero_grad()
    embeddings = reader(stacks)
    (embeddings.sin() * torch.linspace(-1, 1, embeddings.numel()).to(embeddings).view_as(embeddings)).sum().backward()
    return embeddings.detach(), {n: p.grad if p.grad is None else p.grad.clone() for n, p in encoder.named_parameters()}


@pytest.mark.parametrize("name", sorted(encoders.available()))
def test_captured_passes_of_an_encoder_are_its_passes(name, monkeypatch, caplog):
    torch.manual_seed(0)
    kind = encoders.available()[name]
    encoder = kind(**({"dropout": 0.0} if "dropout" in inspect.signature(kind).parameters else {})).double().to("cuda")
    family = GRU(input_size=2, output_size=1, hidden_size=5)
    stacks = [Stack(family, on_cuda(drawn(family, 6, torch.float64)), torch.arange(6, device="cuda")) for _ in range(2)]
    encoder.fit_standardisation(stacks)
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph)))
    reader, expected = CapturedEncoder(encoder), passed(encoder, encoder, stacks)
    for _ in range(5):
        reader.begin_step()
        found = passed(encoder, reader, stacks)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-8, atol=1e-8)
        for weight, gradient in expected[1].items():
            if gradient is None:
                assert found[1][weight] is None
            else:
                torch.testing.assert_close(found[1][weight], gradient, rtol=1e-8, atol=1e-8)
    assert len(replays) == (12 if name in CAPTURED else 0)
    assert len(caplog.records) == (0 if name in CAPTURED else 1)
