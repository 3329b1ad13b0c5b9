"""Ratios of speed on CUDA, each measured beside its alternative. Run with `pytest -m "gpu and benchmark" -n 0 -s`."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from weightspace import families
from weightspace.container import num_cores
from weightspace.rollout import Streams, captured
from zoo_builder.build import build
from zoo_builder.learning.base import Run, fresh_params
from zoo_builder.learning.batches import UPDATES_PER_DRAW
from zoo_builder.learning.bptt import BPTT
from zoo_builder.members import Members
from zoo_builder.tasks.copy import Copy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.benchmark,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
QUICKSTART = Path(__file__).parents[2] / "configs" / "zoo" / "quickstart.yaml"
# 50 steps of 10 inputs, 32 sequences, 32 units.
TASK = Copy(num_symbols=8, length=10, max_delay=30, delay=20)
BATCH, HIDDEN = 32, 32
LOOPED = 32
"""Models of the loop, whose time is the number of models times that of one."""


def family_of(name: str) -> families.Family:
    sizes = {"input_size": TASK.input_size, "output_size": TASK.output_size, "hidden_size": HIDDEN}
    return families.load(name, sizes)


def clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def ms_per_model_update(family: families.Family, models: int) -> float:
    """Of learning a stack, its data drawn on the way; the first updates and the capture are left out."""
    first, last = 2 * UPDATES_PER_DRAW, 5 * UPDATES_PER_DRAW
    marks = {}

    def told(update: int) -> None:
        if update in (first, last):
            marks[update] = clock()

    learner = BPTT(num_updates=last, batch_size=BATCH)
    ids = [f"model-{i}" for i in range(models)]
    learner.learn(family, TASK, Members(0, ids), [last], Run(device="cuda", progress=told))
    return 1000 * (marks[last] - marks[first]) / (last - first) / models


def ms_of_a_loop(family: families.Family) -> float:
    """Of the same updates by torch.nn's layers, which call cuDNN, one model after another, on data drawn before."""
    ids = [f"model-{i}" for i in range(LOOPED)]
    params = {name: tensor.to("cuda") for name, tensor in fresh_params(family, 0, ids).items()}
    models = [family.to_torch({name: tensor[i] for name, tensor in params.items()}) for i in range(LOOPED)]
    leaves = [[*layer.parameters(), *readout.parameters()] for layer, readout in models]
    optimisers = [torch.optim.AdamW(own, lr=3e-3, weight_decay=0.0, fused=True) for own in leaves]
    batch = TASK.sample({}, Streams(0, ids, "train", "cuda"), BATCH, "train")

    def work() -> None:
        for i, (layer, readout) in enumerate(models):
            outputs = readout(layer(batch.x[i])[0][-TASK.length :])
            optimisers[i].zero_grad()
            F.cross_entropy(outputs.flatten(0, 1), batch.target[i].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(leaves[i], 1.0)
            optimisers[i].step()

    return 1000 * median_seconds(work) / LOOPED


def median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return sorted(times)[repeats // 2]


@pytest.mark.parametrize("name", ["Elman", "GRU", "LSTM"])
def test_captured_updates_are_faster_than_launched_ones_and_than_a_loop_over_cudnn(name, monkeypatch):
    family = family_of(name)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        loop = ms_of_a_loop(family)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{name}, {HIDDEN} units, batches of {BATCH}, {TASK.num_steps} steps")
    print(f"one by one, torch.nn: {loop:.4f} ms for a model's update")
    for models in (64, 256, 1024, 4096):
        replayed = ms_per_model_update(family, models)
        with monkeypatch.context() as patch:
            patch.setattr(captured, "on_cuda", lambda tensors: False)
            launched = ms_per_model_update(family, models)
        ratios = f"{launched / replayed:.1f} times as fast as launched, {loop / replayed:.1f} times as the loop"
        print(f"{models:5} models: {replayed:.4f} ms captured, {launched:.4f} ms launched one by one: {ratios}")
        assert loop > replayed
        # Large stacks keep a GPU busy either way.
        assert launched > replayed or models > 256


@pytest.mark.slow
def test_the_quickstarts_zoo_is_built_on_cuda_as_on_the_cpu(tmp_path):
    seconds = {}
    for device in ("cuda", "cpu"):
        start = time.perf_counter()
        build(QUICKSTART, tmp_path / device, device=device)
        seconds[device] = time.perf_counter() - start
    print(f"\n{torch.cuda.get_device_name()} and one process: {seconds['cuda']:.0f} s")
    print(f"{num_cores()} cores and as many processes: {seconds['cpu']:.0f} s")
