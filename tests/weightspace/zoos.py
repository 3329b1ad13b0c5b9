"""Small zoos written by the real store, for tests of what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from weightspace.families import Family
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.rollout import rollout
from weightspace.store import ShardContent, finish, write_shard

FAMILIES = (
    Elman(input_size=1, hidden_size=4, output_size=1),
    Elman(input_size=1, hidden_size=6, output_size=1, nonlinearity="relu"),
    GRU(input_size=2, hidden_size=4, output_size=3),
)
STEPS = (0, 100)
LABELS = ("score", "trace", "decay")


def write_zoo(
    path: Path,
    families: Sequence[Family] = FAMILIES,
    models: int = 20,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    rollouts: bool = True,
    shards_per_family: int = 1,
    held_out: bool = False,
    spoilt: tuple[str, Any] | None = None,
    spoilt_weight: float = math.nan,
    tasks: Mapping[str, Any] | None = None,
) -> Path:
    """Write a finished zoo: one shard or more per family, `models` models each; a fifth is val, a fifth is test.

    With `held_out` a quarter of the models (of every split) has task parameters beyond all others, models of 6 units
    are large, each class of families is a fold, and each has both tasks. `spoilt` is a column and a value: rows that
    have it are spoilt, their weights being `spoilt_weight`, their rollouts NaN, their labels NaN or 1e30 by turns,
    their learning rate negative. `tasks` are the manifest's records of the tasks DelayedRecall and TiledDigits.
    """
    index = 0
    for family in families:
        for _ in range(shards_per_family):
            content = _shard(family, models, steps, seed + index, index, rollouts, held_out)
            if spoilt is not None:
                rows = np.array([value == spoilt[1] for value in content.table.column(spoilt[0]).to_pylist()])
                content = _spoilt(content, rows, spoilt_weight)
            write_shard(path, index, content, "plan")
            index += 1
    declared = [{"class": type(f).__name__, "config": f.config, "spec": json.loads(f.spec.to_json())} for f in families]
    made = {"generator": {"name": "tests"}, "executor": {"method": "torch", "device": "cpu"}, "plan": "plan"}
    recorded = {} if tasks is None else {"tasks": tasks}
    finish(path, {**made, **recorded, "recipe": {}, "families": declared, "labels": {}}, index, "A zoo for tests")
    return path


def _shard(
    family: Family, models: int, steps: Sequence[int], seed: int, index: int, rollouts: bool, held_out: bool
) -> ShardContent:
    generator = torch.Generator().manual_seed(seed)
    # One row per (model, snapshot), the snapshots of a model one after another.
    drawn = [family.spec.random_params(generator, torch.float32) for _ in range(models * len(steps))]
    params = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    stored = None
    if rollouts:
        x = torch.randn(len(drawn), 7, 3, family.input_size, generator=generator)
        outputs = rollout(family, params, x).outputs.transpose(1, 2).contiguous()
        stored = {"x": x.transpose(1, 2).contiguous(), "outputs": outputs}
    table = _table(family, params, models, steps, seed, index, held_out)
    return ShardContent(family=family, params=params, table=table, rollouts=stored)


def _spoilt(content: ShardContent, rows: np.ndarray, weight: float) -> ShardContent:
    def spoil(tensors: dict, value: float) -> dict:
        mask = torch.from_numpy(rows)
        return {k: torch.where(mask.view(-1, *[1] * (t.dim() - 1)), value, t) for k, t in tensors.items()}

    table = content.table
    for name in LABELS:
        values = table.column(name).to_numpy(zero_copy_only=False).copy()
        values[rows] = np.where(np.arange(rows.sum()) % 2, 1e30, np.nan)
        table = table.set_column(table.column_names.index(name), name, pa.array(values, from_pandas=True))
    # No number of a held-out record may decide what becomes of those of training.
    texts = table.column("learning_config").to_pylist()
    told = [json.dumps({"learning_rate": -1.0}) if bad else text for text, bad in zip(texts, rows, strict=True)]
    table = table.set_column(table.column_names.index("learning_config"), "learning_config", [told])
    rollouts = None if content.rollouts is None else spoil(content.rollouts, math.nan)
    return replace(content, params=spoil(content.params, weight), table=table, rollouts=rollouts)


def _table(
    family: Family, params: dict, models: int, steps: Sequence[int], seed: int, index: int, held_out: bool
) -> pa.Table:
    rows = models * len(steps)
    step = np.tile(steps, models)
    model = np.repeat(np.arange(models), len(steps))
    diagonals = [params[name].double().diagonal(dim1=-2, dim2=-1) for name in family.spec.recurrent()]
    diagonals += [params[name].double() for name, _ in family.spec.vectors(diagonal=True)]
    trace = diagonals[0].flatten(1).sum(1).numpy()
    rng = np.random.default_rng(seed)
    split = np.array(["train", "train", "train", "val", "test"])[model % 5]
    recall = model % 3 > 0 if held_out else np.full(rows, family.input_size == 1)
    task = np.where(recall, "DelayedRecall", "TiledDigits")
    columns = pa.table(
        {
            "model_id": [f"model-{index}-{m:04d}" for m in model],
            "step": step,
            "family": [type(family).__name__] * rows,
            "task": task.tolist(),
            "family_config": [json.dumps(family.config, sort_keys=True)] * rows,
            "task_config": [json.dumps({"delay": int(m % 3), "kind": "a"}) for m in model],
            "learning_config": [json.dumps({"learning_rate": 10.0 ** -(m % 4)}) for m in model],
            "hidden_size": [family.hidden_size] * rows,
            "num_parameters": [family.spec.num_parameters] * rows,
            "seed": [seed] * rows,
            "status": np.where((model == 1) & (step > 0), "diverged", np.where(step == 0, "untrained", "ok")).tolist(),
            "split": split.tolist(),
            "split_task": np.where(held_out & (model % 4 == 3), "out", "in").tolist(),
            "split_size": ["out" if held_out and family.hidden_size == 6 else "in"] * rows,
            "fold_family": [int(held_out and type(family) is not type(FAMILIES[0]))] * rows,
            "shard": [index] * rows,
            "row": np.arange(rows),
            "decay": pa.array(np.where(model % 7 == 2, np.nan, rng.standard_cauchy(rows)), from_pandas=True),
            "score": np.where(step == 0, 0.5, trace / 4),
            "trace": trace,
        }
    )
    missing = pa.nulls(rows, pa.int64())
    return columns.add_column(columns.column_names.index("split"), "diverged_step", missing)
