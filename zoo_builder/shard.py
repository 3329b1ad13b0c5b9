"""Shards made (learn, label, roll out, tabulate) or labelled anew, as pure functions of plan and index."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from weightspace import store
from weightspace.families import Family
from weightspace.rollout import Method, Streams
from weightspace.rollout.forward import last_outputs
from weightspace.rollout.noise import draw_noise
from weightspace.spec import Params
from weightspace.store import ShardContent
from zoo_builder import labels
from zoo_builder.learning import Learned, Run
from zoo_builder.members import Members, padded_params
from zoo_builder.planning.plan import Cohort, Plan, Shard
from zoo_builder.stacks import chunk_size, models_together
from zoo_builder.table import label_column, measured_columns, refuse_other_models, table_of, with_columns
from zoo_builder.tasks import Batch


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Chunk of a shard: models that are computed together, with snapshots, labels and rollouts, without padding."""

    members: Members
    learned: Learned
    measured: list[dict[str, Tensor]]
    """The labels and the learner's records of each snapshot, columns (models,)."""
    rollouts: list[tuple[Tensor, Tensor]]
    """Inputs and outputs (models, sequences, time, ...) of each snapshot, none if the recipe asks for none."""


def make_shard(
    plan: Plan,
    shard: Shard,
    device: str = "cpu",
    method: Method = "stacked",
    progress: Callable[[int], None] | None = None,
) -> ShardContent:
    """Content of one shard, rows by model, then snapshot.

    `progress` is called with the number of (model, update) pairs done since the last call.
    """
    cohort = shard.cohort
    members = cohort.members(plan.seed, shard.model_ids)
    stacks = members.parts(models_together(cohort, device))
    learned = _joined([_learned(plan, cohort, stack, device, method, progress) for stack in stacks])
    size = chunk_size(device)
    chunks = [
        _measured(plan, cohort, part, _part(learned, number * size, (number + 1) * size), device, method)
        for number, part in enumerate(members.parts(size))
    ]
    params = {name: tensor.flatten(0, 1) for name, tensor in learned.params.items()}
    tables = [
        table_of(plan, shard, chunk.members, chunk.learned, chunk.measured, number * size)
        for number, chunk in enumerate(chunks)
    ]
    stored = None
    if plan.recipe["rollouts"] is not None:
        x, outputs = (
            torch.cat([torch.stack([pair[i] for pair in chunk.rollouts], dim=1) for chunk in chunks]).flatten(0, 1)
            for i in range(2)
        )
        stored = {"x": x, "outputs": outputs}
    return ShardContent(family=cohort.family, params=params, table=pa.concat_tables(tables), rollouts=stored)


def stage_shard(
    zoo: Path,
    plan: Plan,
    shard: Shard,
    names: Sequence[str],
    key: str,
    device: str = "cpu",
    method: Method = "stacked",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Measure the labels `names` of a finished shard's models and write its new table to staging.

    `progress` is called with the number of models measured since the last call.
    """
    opened = store.open_zoo(zoo)
    stack, table = opened.shard(shard.index)
    refuse_other_models(plan, shard, stack.family, table)
    count, num_snapshots, size = len(shard.model_ids), len(plan.snapshots), chunk_size(device)
    params = {name: tensor.unflatten(0, (count, num_snapshots)) for name, tensor in stack.params.items()}
    everyone = shard.cohort.members(plan.seed, shard.model_ids)
    if shard.cohort.task is None and opened.shards[shard.index].has_rollouts:
        recorded = opened.rollouts(stack.rows.tolist()[::num_snapshots])[0]
        everyone = dataclasses.replace(everyone, recorded=recorded)
    pieces = []
    for number, members in enumerate(everyone.parts(size)):
        some = {name: tensor[number * size : (number + 1) * size] for name, tensor in params.items()}
        measured = measure_labels(plan, shard.cohort, names, members, some, device, method)
        columns = measured_columns(plan, names)
        pieces.append(pa.table({name: label_column(measured, name, len(members.ids)) for name in columns}))
        if progress is not None:
            progress(len(members.ids))
    store.stage_table(zoo, key, shard.index, with_columns(plan, table, pa.concat_tables(pieces)))


def _learned(
    plan: Plan, cohort: Cohort, members: Members, device: str, method: Method, progress: Callable[[int], None] | None
) -> Learned:
    """Chunks of a few models of one cohort that learn together."""
    count = len(members.ids)
    run = Run(device, method, None if progress is None else lambda update: progress(count))
    learned = cohort.learner.learn(cohort.family, cohort.task, members.padded(), plan.snapshots, run)
    return _part(learned, 0, count)


def _measured(plan: Plan, cohort: Cohort, members: Members, learned: Learned, device: str, method: Method) -> Chunk:
    """Label and roll out a few models of one cohort together."""
    padded, count = members.padded(), len(members.ids)
    rollouts = []
    if cohort.task is not None and plan.recipe["rollouts"] is not None:
        streams = Streams(plan.seed, padded.ids, "rollouts", device)
        batch, noise = held_out(cohort, padded.values, streams, plan.recipe["rollouts"]["sequences"])
        for snapshot in range(len(learned.steps)):
            params = padded_params(learned.params, snapshot, len(padded.ids), device)
            pair = _rolled_out(cohort.family, params, batch, noise, method)
            rollouts.append((pair[0][:count].cpu(), pair[1][:count].cpu()))
    measured = [
        columns | {name: record[:, snapshot] for name, record in learned.records.items()}
        for snapshot, columns in enumerate(
            measure_labels(plan, cohort, plan.recipe["labels"], members, learned.params, device, method)
        )
    ]
    return Chunk(members, learned, measured, rollouts)


def measure_labels(
    plan: Plan,
    cohort: Cohort,
    names: Sequence[str],
    members: Members,
    params: Params,
    device: str = "cpu",
    method: Method = "stacked",
) -> list[dict[str, Tensor]]:
    """The labels `names` of models with params (models, snapshots, ...): for each snapshot, columns (models,)."""
    num_snapshots = len(plan.snapshots)
    if not names:
        return [{} for _ in range(num_snapshots)]
    padded = labels.padded(cohort.family, cohort.task, members, device, method)
    count = len(members.ids)
    snapshots = [padded_params(params, snapshot, len(padded.ids), device) for snapshot in range(num_snapshots)]
    stacked = {name: torch.cat([params[name] for params in snapshots]) for name in params}
    measured = labels.measure(names, cohort.family, stacked, cohort.task, padded, method)
    apart = {name: column.unflatten(0, (num_snapshots, -1))[:, :count] for name, column in measured.items()}
    return [{name: column[snapshot] for name, column in apart.items()} for snapshot in range(num_snapshots)]


def _part(learned: Learned, first: int, last: int) -> Learned:
    params = {name: tensor[first:last] for name, tensor in learned.params.items()}
    records = {name: record[first:last] for name, record in learned.records.items()}
    return Learned(learned.steps, params, learned.diverged_step[first:last], records)


def _joined(parts: Sequence[Learned]) -> Learned:
    params = {name: torch.cat([part.params[name] for part in parts]) for name in parts[0].params}
    records = {name: torch.cat([part.records[name] for part in parts]) for name in parts[0].records}
    return Learned(parts[0].steps, params, torch.cat([part.diverged_step for part in parts]), records)


def held_out(
    cohort: Cohort, values: Mapping[str, Tensor], streams: Streams, sequences: int
) -> tuple[Batch, dict[str, Tensor]]:
    """Held-out sequences and the noise of models on them, the same at every snapshot."""
    assert cohort.task is not None
    batch = cohort.task.sample(values, streams, sequences, "test")
    return batch, draw_noise(cohort.family.spec, streams, batch.x.shape[1], sequences)


@torch.no_grad()
def _rolled_out(
    family: Family, params: Params, batch: Batch, noise: Mapping[str, Tensor], method: Method
) -> tuple[Tensor, Tensor]:
    """Inputs and the outputs on them, both (models, sequences, time, ...)."""
    num_steps = batch.x.shape[1]
    outputs = last_outputs(family, params, batch.x, batch.start, noise, num_steps, method=method)
    return batch.x.transpose(1, 2).contiguous(), outputs.transpose(1, 2).contiguous()
