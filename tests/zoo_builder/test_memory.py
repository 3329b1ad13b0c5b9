"""Peak memory does not grow with the number of shards: of building, merging, checking and training an encoder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peaks from /proc"),
]

FEW, MANY = 4, 40

# Peaks in MB: of this process from the kernel's own mark, which begins anew with the process, and of its largest child.
PEAKS = """
import json, re, resource
own = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps({"own": own / 1024, "children": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}))
"""

BUILD = """
import sys
from zoo_builder.build import build
from weightspace.store import verify

shards, out = int(sys.argv[1]), sys.argv[2]
recipe = {
    "families": [{"class": "GRU", "hidden_size": 24}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 24, "delay": {"integers": [5, 18]}}],
    "learning": {"class": "BPTT", "num_updates": 2, "batch_size": 8},
    "snapshots": [0, 1, 2],
    "models_per_cohort": 32 * shards,
    "shard_size": 32,
    "labels": ["Performance"],
    "rollouts": {"sequences": 300},
}
assert build(recipe, out, workers=1).built == shards
assert not verify(Path(out))
"""

MERGE = """
import sys
import json
import pyarrow as pa
import torch
from weightspace.families.elman import Elman
from weightspace.store import SCHEMA, ShardContent, finish, verify, write_shard

shards, out = int(sys.argv[1]), Path(sys.argv[2])
rows, family = 20_000, Elman(input_size=1, hidden_size=1, output_size=1)
params = {name: torch.zeros(rows, *family.spec.shape(name)) for name in family.spec.tensors}
texts = {"family": "Elman", "family_config": json.dumps(family.config), "learning_config": "{}", "status": "ok"}
texts |= {"split": "train", "split_task": "in", "split_size": "in"}
for index in range(shards):
    numbers = {"row": range(rows), "shard": [index] * rows}
    columns = {
        field.name: pa.array(numbers.get(field.name) or [texts.get(field.name, 0)] * rows, type=field.type)
        for field in SCHEMA if field.name not in ("model_id", "task", "task_config")
    }
    columns |= {name: pa.nulls(rows, pa.string()) for name in ("task", "task_config")}
    columns |= {f"label_{i}": torch.arange(rows).double().add(i + index).numpy() for i in range(20)}
    columns["model_id"] = [f"model-{index:05d}-{row:07d}-with-a-name-of-some-length" for row in range(rows)]
    write_shard(out, index, ShardContent(family=family, params=params, table=pa.table(columns)), "plan")
executor = {"method": "torch", "device": "cpu"}
head = {"plan": "plan", "generator": {}, "executor": executor, "recipe": {}, "families": [], "labels": {}}
finish(out, head, shards, "A zoo of many rows")
assert not verify(out)
"""


def peaks(script, shards, out):
    code = f"from pathlib import Path\n{script}\n{PEAKS}"
    ended = subprocess.run([sys.executable, "-c", code, str(shards), str(out)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_ten_times_the_shards_take_builder_and_workers_no_more_memory(tmp_path):
    few, many = (peaks(BUILD, shards, tmp_path / str(shards)) for shards in (FEW, MANY))
    print(
        f"builder {few['own']:.0f} -> {many['own']:.0f} MB, worker {few['children']:.0f} -> {many['children']:.0f} MB"
    )
    # What is written is so much that keeping it would be seen.
    size = sum(path.stat().st_size for path in (tmp_path / str(MANY)).rglob("*") if path.is_file()) / 2**20
    assert size > 0.5 * few["children"]
    assert many["own"] < 1.1 * few["own"]
    assert many["children"] < 1.1 * few["children"]


def test_ten_times_the_shards_take_merging_and_checking_no_more_memory(tmp_path):
    few, many = (peaks(MERGE, shards, tmp_path / str(shards)) for shards in (FEW, MANY))
    print(f"merging {few['own']:.0f} -> {many['own']:.0f} MB")
    assert many["own"] < 1.1 * few["own"]


FIT = """
import sys
from weightspace.cli import main

zoo, out = sys.argv[1:]
options = {
    "model.encoder": "MessagePassing", "model.encoder.embedding_dim": 16, "model.encoder.node_dim": 16,
    "model.encoder.edge_dim": 8, "model.objective": "Emulation", "model.objective.sequences_per_model": 8,
    "data.zoo": zoo, "data.cache_mb": 8, "data.batch_size": 32, "trainer.max_epochs": 1,
    "trainer.enable_progress_bar": "false", "trainer.default_root_dir": out,
}
assert main(["fit", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]) == 0
"""


def test_ten_times_the_shards_take_training_of_an_encoder_no_more_memory(tmp_path):
    zoos = {shards: tmp_path / str(shards) for shards in (FEW, MANY)}
    for shards, zoo in zoos.items():
        peaks(BUILD, shards, zoo)
    few, many = (peaks(FIT, zoo, tmp_path / f"run-{shards}") for shards, zoo in zoos.items())
    print(f"training an encoder {few['own']:.0f} -> {many['own']:.0f} MB")
    # The data are so large that keeping them would be seen.
    assert sum(path.stat().st_size for path in zoos[MANY].rglob("*.safetensors")) / 2**20 > 0.2 * few["own"]
    assert many["own"] < 1.1 * few["own"]
