"""Cost of a recipe, measured on a few updates and labels of each cohort, without building anything."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

from weightspace.rollout import Method
from weightspace.store import SCHEMA
from weightspace.terminal import shows_bars
from zoo_builder import labels
from zoo_builder.learning import Run
from zoo_builder.learning.batches import UPDATES_PER_DRAW
from zoo_builder.planning.memory import check_memory, memory_named
from zoo_builder.planning.plan import Cohort, Plan
from zoo_builder.stacks import chunk_size, models_together
from zoo_builder.table import label_columns

UPDATES = 17
# Seconds after which the updates made so far are enough.
MOST_SECONDS = 10.0
# Parameters of all models whose labels are measured: those of large models take seconds and gigabytes.
MODELS_LABELLED, PARAMETERS_LABELLED = (4, 16), 40_000
# Bytes of one row's text columns, after compression.
TEXT_BYTES = 60


class _Enough(Exception):
    """Signal from the learner's progress call that enough updates were timed."""


def estimate(plan: Plan, workers: int, device: str = "cpu", method: Method = "stacked") -> dict[str, Any]:
    """Cohorts with their models, bytes and CPU seconds, and the totals; `seconds` is wall-clock time with `workers`."""
    check_memory(plan)
    torch.set_num_threads(1)
    num_labels = len(label_columns(plan))
    for cohort in {type(cohort.family): cohort for cohort in plan.cohorts}.values():
        # The first measurement of a family compiles and loads, unlike the later ones.
        with memory_named(plan, cohort):
            _label_seconds(plan, cohort, device, method)
    bar = tqdm(plan.cohorts, unit=" cohorts", disable=not shows_bars(), desc="estimate")
    cohorts = [_cohort(plan, cohort, num_labels, device, method) for cohort in bar]
    cpu_seconds = sum(row["cpu_seconds"] for row in cohorts)
    return {
        "cohorts": cohorts,
        "models": plan.num_models,
        "rows": plan.num_models * len(plan.snapshots),
        "shards": len(plan.shards),
        "bytes": sum(row["bytes"] for row in cohorts),
        "cpu_seconds": _three_digits(cpu_seconds),
        "workers": min(workers, len(plan.shards)),
        "seconds": _three_digits(cpu_seconds / min(workers, len(plan.shards))),
    }


def _three_digits(seconds: float) -> float:
    """Seconds, rounded but never to 0: the smallest plans take milliseconds."""
    return float(f"{seconds:.3g}")


def _cohort(plan: Plan, cohort: Cohort, num_labels: int, device: str, method: Method) -> dict[str, Any]:
    models = len(cohort.splits)
    with memory_named(plan, cohort):
        seconds = _learning_seconds(plan, cohort, device, method) + _label_seconds(plan, cohort, device, method)
    return {
        "name": cohort.name,
        "models": models,
        "num_parameters": cohort.family.spec.num_parameters,
        "bytes": models * len(plan.snapshots) * _row_bytes(plan, cohort, num_labels),
        "cpu_seconds": _three_digits(seconds),
    }


def _row_bytes(plan: Plan, cohort: Cohort, num_labels: int) -> int:
    """Bytes of one (model, snapshot) on the disk; the table is there twice, in its shard and merged."""
    spec = cohort.family.spec
    weights = 4 * sum(torch.Size(spec.shape(name)).numel() for name in spec.tensors)
    table = 2 * (8 * (len(SCHEMA) + num_labels) + TEXT_BYTES)
    if cohort.task is None or plan.recipe["rollouts"] is None:
        return weights + table
    channels = cohort.task.input_size + cohort.task.output_size
    return weights + table + 4 * int(plan.recipe["rollouts"]["sequences"]) * cohort.task.num_steps * channels


def _learning_seconds(plan: Plan, cohort: Cohort, device: str, method: Method) -> float:
    """Seconds of learning of a whole cohort, from a few updates of its first stack."""
    together = min(models_together(cohort, device), plan.recipe["shard_size"])
    ids = cohort.ids(0, min(together, len(cohort.splits)))
    times: list[float] = []

    def timed(update: int) -> None:
        times.append(_now(device))
        if update > UPDATES or times[-1] - start > MOST_SECONDS:
            raise _Enough

    start = _now(device)
    members = cohort.members(plan.seed, ids)
    try:
        cohort.learner.learn(cohort.family, cohort.task, members, plan.snapshots, Run(device, method, timed))
    except _Enough:
        # The quickest of two rounds, each with one draw of data, because other work on the machine slows some.
        count, update = UPDATES_PER_DRAW, (times[-1] - start) / len(times)
        if len(times) > UPDATES:
            update = min(later - earlier for earlier, later in zip(times, times[count:], strict=False)) / count
        return update * cohort.learner.updates_behind(plan.snapshots[-1]) * len(cohort.splits) / len(ids)
    return (_now(device) - start) * len(cohort.splits) / len(ids)


def _label_seconds(plan: Plan, cohort: Cohort, device: str, method: Method) -> float:
    """Seconds of labelling of a whole cohort, from the fresh params of a few models."""
    if not plan.recipe["labels"]:
        return 0.0
    # On CUDA a whole stack: time is not proportional to models there.
    count, repeats = (_num_labelled(cohort), 1) if device == "cpu" else (chunk_size(device), len(plan.snapshots))
    ids = cohort.ids(0, min(count, len(cohort.splits))) * repeats
    generator = torch.Generator().manual_seed(0)
    models = [cohort.family.init(generator) for _ in ids]
    params = {n: torch.stack([model[n] for model in models]).to(device) for n in cohort.family.spec.tensors}
    start = _now(device)
    labels.measure(plan.recipe["labels"], cohort.family, params, cohort.task, cohort.members(plan.seed, ids), method)
    return (_now(device) - start) * len(cohort.splits) / len(ids) * len(plan.snapshots)


def _num_labelled(cohort: Cohort) -> int:
    fewest, most = MODELS_LABELLED
    return min(max(fewest, PARAMETERS_LABELLED // cohort.family.spec.num_parameters), most)


def _now(device: str) -> float:
    """CPU seconds of this process, or wall-clock seconds on CUDA, which works while the process waits."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def table(estimated: Mapping[str, Any]) -> str:
    """An estimate as text: a line per cohort, then the totals."""
    width = max(len(row["name"]) for row in estimated["cohorts"])
    lines = [f"{'cohort':{width}}  models  parameters        bytes  CPU seconds"]
    for row in estimated["cohorts"]:
        lines.append(
            f"{row['name']:{width}}  {row['models']:6}  {row['num_parameters']:10}  "
            f"{row['bytes']:11,}  {row['cpu_seconds']:11.1f}"
        )
    lines.append(
        f"{len(estimated['cohorts'])} cohorts, {estimated['models']:,} models, {estimated['rows']:,} rows in "
        f"{estimated['shards']:,} shards: about {estimated['bytes'] / 1e6:,.1f} MB and {estimated['seconds']:,.0f} s "
        f"with {estimated['workers']} worker(s)."
    )
    return "\n".join(lines)
