"""What labels cost beside learning, and how exact they are.

`pytest -m benchmark -n 0 -s tests/benchmarks/test_labels.py` prints both. Costs are in CPU time, so that other work on
the machine falsifies them little.
"""

import collections
import dataclasses
import time
from pathlib import Path

import pytest
import torch

from weightspace.store import write_shard
from zoo_builder import labels, shard
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe

pytestmark = pytest.mark.benchmark
RECIPE = Path(__file__).parents[2] / "configs/zoo/quickstart.yaml"
SHARE = 0.15
"""What labels, table and writing may take together, as a share of learning."""
RELIABILITY = {
    "score": 0.98,
    "loss": 0.98,
    "state_effective_rank": 0.99,
    "jacobian_effective_rank": 0.99,
    "memory_decay_rate": 0.99,
    "largest_lyapunov": 0.99,
    "spectral_radius": 0.99,
    "generalisation_gap": 0.2,
}
"""Least correlation of a label with itself, measured again with other sequences, within family, size, task and step."""
PARTS = {"_learned": "learning", "measure_labels": "labels", "_held_out": "rollouts", "_rolled_out": "rollouts"}


@pytest.fixture
def seconds(monkeypatch):
    """CPU seconds of the parts of a shard, filled in as shards are made."""
    spent = collections.Counter()

    def timed(function, part):
        def run(*given):
            before = time.thread_time()
            found = function(*given)
            spent[part] += time.thread_time() - before
            return found

        return run

    for name, part in (PARTS | {"table_of": "table"}).items():
        monkeypatch.setattr(shard, name, timed(getattr(shard, name), part))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield spent
    torch.set_num_threads(threads)


def test_labels_and_writing_take_a_small_share_of_the_time_of_learning(seconds, tmp_path):
    plan = make_plan(read_recipe(RECIPE))
    # What is compiled or read on first use is no part of it.
    shard.make_shard(plan, plan.shards[0], "cpu", "native")
    seconds.clear()
    before = time.thread_time()
    for own in plan.shards:
        content = shard.make_shard(plan, own, "cpu", "native")
        start = time.thread_time()
        write_shard(tmp_path, own.index, content, "benchmark")
        seconds["writing"] += time.thread_time() - start
    total = time.thread_time() - before
    share = (seconds["labels"] + seconds["table"] + seconds["writing"]) / seconds["learning"]
    told = ", ".join(f"{part} {spent:.2f}" for part, spent in seconds.items())
    print(f"\nCPU seconds for {plan.num_models} models: {told}; labels, table and writing / learning = {share:.3f}")
    # Beside these: the sequences on which models are rolled out for the zoo, and putting it all together.
    print(f"all but learning / learning = {total / seconds['learning'] - 1:.3f}")
    assert share <= SHARE


def test_labels_measured_with_other_sequences_are_nearly_the_same():
    plan = make_plan(read_recipe(RECIPE))
    found = {name: ([], []) for name in RELIABILITY}
    for own in plan.shards:
        cohort, ids = own.cohort, own.model_ids
        members = cohort.members(plan.seed, ids)
        learned = shard._learned(plan, cohort, members, "cpu", "native", None)
        for place in range(len(plan.snapshots)):
            params = {name: tensor[:, place].contiguous() for name, tensor in learned.params.items()}
            for seed in (1, 2):
                others = dataclasses.replace(members, seed=seed)
                columns = labels.measure(plan.recipe["labels"], cohort.family, params, cohort.task, others, "native")
                for name, sides in found.items():
                    # As it is probed: see weightspace.data.targets.
                    column = columns[name].clamp(-0.5, 1.5) if name == "memory_decay_rate" else columns[name]
                    sides[seed - 1].append(column - column.nanmean())
    reliability = {}
    for name, sides in found.items():
        pair = torch.stack([torch.cat(side) for side in sides])
        reliability[name] = torch.corrcoef(pair[:, pair.isfinite().all(0)])[0, 1].item()
    print("\n" + ", ".join(f"{name} {value:.4f}" for name, value in reliability.items()))
    assert {name: value for name, value in reliability.items() if value < RELIABILITY[name]} == {}
