"""Making one shard: learn, label, roll out, tabulate; a pure function of the plan and the shard's place in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, Streams
from weightspace.rollout.forward import last_outputs
from weightspace.rollout.noise import draw_noise
from weightspace.spec import Params
from weightspace.store import SCHEMA, ShardContent, canonical
from zoo_builder import labels
from zoo_builder.learning import Learned, Learner
from zoo_builder.planning.plan import Cohort, Plan, Shard, hidden_size
from zoo_builder.stacks import Members, chunk_size, models_together, padded_params
from zoo_builder.tasks import Batch, Task


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Models of one shard that are computed together, and what became of them (padding left out)."""

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
    """Everything one shard holds, rows by model, then snapshot.

    `progress` is called with the number of (model, update) pairs done since the last call.
    """
    cohort = shard.cohort
    members = Members.of(plan, cohort, shard.model_ids)
    stacks = members.parts(models_together(cohort, device))
    learned = _joined([_learned(plan, cohort, own, device, method, progress) for own in stacks])
    size = chunk_size(device)
    chunks = [
        _made_chunk(plan, cohort, own, _part(learned, place * size, (place + 1) * size), device, method)
        for place, own in enumerate(members.parts(size))
    ]
    params = {name: tensor.flatten(0, 1) for name, tensor in learned.params.items()}
    table = pa.concat_tables([_table(plan, shard, chunk, place * size) for place, chunk in enumerate(chunks)])
    stored = None
    if plan.recipe["rollouts"] is not None:
        x, outputs = (
            torch.cat([torch.stack([pair[i] for pair in chunk.rollouts], dim=1) for chunk in chunks]).flatten(0, 1)
            for i in range(2)
        )
        stored = {"x": x, "outputs": outputs}
    return ShardContent(family=shard.cohort.family, params=params, table=table, rollouts=stored)


def _learned(
    plan: Plan, cohort: Cohort, members: Members, device: str, method: Method, progress: Callable[[int], None] | None
) -> Learned:
    """What becomes of a few models of one cohort that learn together."""
    own, count = members.padded(), len(members.ids)
    told = (lambda update: progress(count)) if progress is not None else None
    drawn = (own.values, own.settings, plan.seed, own.ids)
    learned = cohort.learner.learn(cohort.family, cohort.task, *drawn, plan.snapshots, device, method, told)
    return _part(learned, 0, count)


def _made_chunk(plan: Plan, cohort: Cohort, members: Members, learned: Learned, device: str, method: Method) -> Chunk:
    """Label and roll out a few models of one cohort together."""
    own, count = members.padded(), len(members.ids)
    rollouts = []
    if cohort.task is not None and plan.recipe["rollouts"] is not None:
        streams = Streams(plan.seed, own.ids, "rollouts", device)
        given = _held_out(cohort, own.values, streams, plan.recipe["rollouts"]["sequences"])
        for place in range(len(learned.steps)):
            params = padded_params(learned.params, place, len(own.ids), device)
            pair = _rolled_out(cohort.family, params, *given, method)
            rollouts.append((pair[0][:count].cpu(), pair[1][:count].cpu()))
    measured = [
        found | {name: record[:, place] for name, record in learned.records.items()}
        for place, found in enumerate(
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
    own, count = members.padded(), len(members.ids)
    snapshots = [padded_params(params, place, len(own.ids), device) for place in range(num_snapshots)]
    stacked = {name: torch.cat([one[name] for one in snapshots]) for name in params}
    found = labels.measure(names, cohort.family, stacked, cohort.task, own.values, plan.seed, own.ids, method=method)
    apart = {name: column.unflatten(0, (num_snapshots, -1))[:, :count] for name, column in found.items()}
    return [{name: column[place] for name, column in apart.items()} for place in range(num_snapshots)]


def _part(learned: Learned, first: int, last: int) -> Learned:
    params = {name: tensor[first:last] for name, tensor in learned.params.items()}
    records = {name: record[first:last] for name, record in learned.records.items()}
    return Learned(learned.steps, params, learned.diverged_step[first:last], records)


def _joined(parts: Sequence[Learned]) -> Learned:
    params = {name: torch.cat([part.params[name] for part in parts]) for name in parts[0].params}
    records = {name: torch.cat([part.records[name] for part in parts]) for name in parts[0].records}
    return Learned(parts[0].steps, params, torch.cat([part.diverged_step for part in parts]), records)


def _held_out(
    cohort: Cohort, values: Mapping[str, Tensor], streams: Streams, sequences: int
) -> tuple[Batch, dict[str, Tensor]]:
    """Held-out sequences and the noise that models are given with them, the same at every snapshot."""
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


def _table(plan: Plan, shard: Shard, chunk: Chunk, offset: int) -> pa.Table:
    cohort, members, steps = shard.cohort, chunk.members, chunk.learned.steps
    num_models = len(members.ids)
    share = plan.recipe["splits"]["out_of_distribution"]["task_share"]
    of_cohort = {
        "family": type(cohort.family).__name__,
        "family_config": canonical(cohort.family.config),
        "task": None if cohort.task is None else type(cohort.task).__name__,
        "hidden_size": hidden_size(cohort.family),
        "num_parameters": cohort.family.spec.num_parameters,
        "split_size": cohort.split_size,
        "fold_family": cohort.fold_family,
        "seed": plan.seed,
        "shard": shard.index,
    }
    first = shard.first + offset
    of_models = {
        "model_id": members.ids,
        "task_config": [None] * num_models
        if cohort.task is None
        else _configs(cohort.task, members.values, num_models),
        "learning_config": _configs(cohort.learner, members.settings, num_models, type(cohort.learner).__name__),
        "split": cohort.splits[first : first + num_models],
        "split_task": out_of_task(cohort, members.values, share, num_models),
    }
    rows: dict[str, Sequence[Any]] = {name: [value] * (num_models * len(steps)) for name, value in of_cohort.items()}
    rows |= {name: [value for value in own for _ in steps] for name, own in of_models.items()}
    rows |= _states(chunk.learned, num_models)
    rows["row"] = range(offset * len(steps), (offset + num_models) * len(steps))
    columns = {field.name: pa.array(rows[field.name], type=field.type) for field in SCHEMA}
    for name in label_columns(plan):
        columns[name] = label_column(chunk.measured, name, num_models)
    return pa.table(columns)


def _configs(instance: Task | Learner, values: Mapping[str, Tensor], num_models: int, name: str = "") -> list[str]:
    """The fields of a task or learner as JSON, with the model's own values for each model, and its class if given."""
    lead = {"class": name} if name else {}
    return [canonical({**lead, **own}) for own in own_configs(instance, values, num_models)]


def _states(learned: Learned, num_models: int) -> dict[str, list[Any]]:
    """Step, status and where learning diverged, by model, then snapshot."""
    found: dict[str, list[Any]] = {"step": [], "status": [], "diverged_step": []}
    for diverged_step in learned.diverged_step[:num_models].tolist():
        for step in learned.steps:
            diverged = 0 <= diverged_step <= step
            found["step"].append(step)
            found["status"].append("diverged" if diverged else "untrained" if step == 0 else "ok")
            found["diverged_step"].append(diverged_step if diverged_step >= 0 else None)
    return found


def label_column(measured: Sequence[Mapping[str, Tensor]], name: str, num_models: int) -> pa.Array:
    """One label, rows by model, then snapshot, null where it does not apply or is not finite."""
    missing = torch.full((num_models,), torch.nan, dtype=torch.float64)
    values = torch.stack([columns.get(name, missing) for columns in measured], dim=1).flatten()
    return pa.array(values.numpy(), type=pa.float64(), mask=(~values.isfinite()).numpy())


def label_columns(plan: Plan) -> dict[str, labels.LabelColumn]:
    """Every column of the zoo that a label measures or a learner records, sorted by name."""
    measured = _measured_columns(tuple(plan.recipe["labels"]), tuple(cohort.family for cohort in plan.cohorts))
    recorded = {column.name: column for cohort in plan.cohorts for column in cohort.learner.columns}
    return dict(sorted((measured | recorded).items()))


@lru_cache(maxsize=8)
def _measured_columns(names: tuple[str, ...], families: tuple[Family, ...]) -> dict[str, labels.LabelColumn]:
    # All shards of a plan have the same ones.
    return labels.columns(names, [family.effective_spec for family in families])


def out_of_task(cohort: Cohort, values: Mapping[str, Tensor], share: float, num_models: int) -> list[str]:
    """`out` for models with an extreme task, by its own measure or a parameter in the top `share` of its range."""
    own = {key: value[:num_models] for key, value in values.items()}
    extremity = cohort.task.extremity(own) if cohort.task is not None else None
    if extremity is not None:
        return ["out" if found > 1 - share else "in" for found in extremity.expand(num_models).tolist()]
    out = torch.zeros(num_models, dtype=torch.bool)
    for key, spread in cohort.task_spreads.items():
        out |= spread.beyond(own[key], share)
    return ["out" if extreme else "in" for extreme in out.tolist()]


def own_configs(instance: Any, values: Mapping[str, Tensor], num_models: int) -> list[dict[str, Any]]:
    """For each model the fields of a task or learner with the model's own values put in."""
    shared = instance.config
    own = {key: tensor.tolist() for key, tensor in values.items()}
    found = []
    for model in range(num_models):
        config = {name: dict(field) if isinstance(field, dict) else field for name, field in shared.items()}
        for key, numbers in own.items():
            group, _, option = key.rpartition(".")
            fields = config[group] if group else config
            fields[option] = type(fields[option])(numbers[model])
        found.append(config)
    return found
