"""What labels cost beside learning: `pytest -m benchmark -n 0 -s tests/benchmarks/test_labels.py`.

In CPU time, so that other work on the machine falsifies it little.
"""

import collections
import time
from pathlib import Path

import pytest
import torch

from weightspace.store import write_shard
from zoo_builder import shard
from zoo_builder.plan import make_plan
from zoo_builder.recipe import read_recipe

pytestmark = pytest.mark.benchmark
RECIPE = Path(__file__).parents[2] / "configs/zoo/quickstart.yaml"
SHARE = 0.15
"""What labels, held-out rollouts, table and writing may take together, as a share of learning."""
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

    for name, part in (PARTS | {"_table": "table"}).items():
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
    share = total / seconds["learning"] - 1
    told = ", ".join(f"{part} {spent:.2f}" for part, spent in seconds.items())
    print(f"\nCPU seconds for {plan.num_models} models: {told}; all but learning / learning = {share:.3f}")
    assert share <= SHARE
