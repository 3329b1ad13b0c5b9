"""The table of a shard: a row for each snapshot of each model, with its configs, splits, status and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.store import SCHEMA, canonical
from zoo_builder import labels
from zoo_builder.learning import Learned, Learner
from zoo_builder.members import Members
from zoo_builder.planning.plan import Cohort, Plan, Shard, hidden_size
from zoo_builder.tasks import Task


def table_of(
    plan: Plan,
    shard: Shard,
    members: Members,
    learned: Learned,
    measured: Sequence[Mapping[str, Tensor]],
    offset: int,
) -> pa.Table:
    """Rows of some models of a shard, whose first one is number `offset` of the shard.

    `measured` are the labels and the learner's records of each snapshot, columns (models,).
    """
    cohort, steps = shard.cohort, learned.steps
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
    rows |= {name: [value for value in column for _ in steps] for name, column in of_models.items()}
    rows |= _states(cohort.learner, learned, num_models)
    rows["row"] = range(offset * len(steps), (offset + num_models) * len(steps))
    columns = {field.name: pa.array(rows[field.name], type=field.type) for field in SCHEMA}
    for name in label_columns(plan):
        columns[name] = label_column(measured, name, num_models)
    return pa.table(columns)


def _configs(instance: Task | Learner, values: Mapping[str, Tensor], num_models: int, name: str = "") -> list[str]:
    """The fields of a task or learner as JSON, with the model's own values for each model, and its class if given."""
    lead = {"class": name} if name else {}
    return [canonical({**lead, **config}) for config in own_configs(instance, values, num_models)]


def _states(learner: Learner, learned: Learned, num_models: int) -> dict[str, list[Any]]:
    """Step, status and where learning diverged, by model, then snapshot."""
    columns: dict[str, list[Any]] = {"step": [], "status": [], "diverged_step": []}
    for diverged_step in learned.diverged_step[:num_models].tolist():
        for step in learned.steps:
            diverged = 0 <= diverged_step <= step
            columns["step"].append(step)
            columns["status"].append("diverged" if diverged else "ok" if learner.updates_behind(step) else "untrained")
            columns["diverged_step"].append(diverged_step if diverged_step >= 0 else None)
    return columns


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
    # The columns are the same in all shards of a plan.
    return labels.columns(names, [family.effective_spec for family in families])


def out_of_task(cohort: Cohort, values: Mapping[str, Tensor], share: float, num_models: int) -> list[str]:
    """`out` for models with an extreme task, by its own measure or a parameter in the top `share` of its range."""
    values_of_models = {key: value[:num_models] for key, value in values.items()}
    extremity = cohort.task.extremity(values_of_models) if cohort.task is not None else None
    if extremity is not None:
        return ["out" if degree > 1 - share else "in" for degree in extremity.expand(num_models).tolist()]
    out = torch.zeros(num_models, dtype=torch.bool)
    for key, spread in cohort.task_spreads.items():
        out |= spread.beyond(values_of_models[key], share)
    return ["out" if extreme else "in" for extreme in out.tolist()]


def own_configs(instance: Any, values: Mapping[str, Tensor], num_models: int) -> list[dict[str, Any]]:
    """Config of a task or learner for each model, with the model's own values."""
    shared = instance.config
    numbers_of = {key: tensor.tolist() for key, tensor in values.items()}
    configs = []
    for model in range(num_models):
        config = {name: dict(field) if isinstance(field, dict) else field for name, field in shared.items()}
        for key, numbers in numbers_of.items():
            group, _, option = key.rpartition(".")
            fields = config[group] if group else config
            fields[option] = type(fields[option])(numbers[model])
        configs.append(config)
    return configs


def measured_columns(plan: Plan, names: Sequence[str]) -> list[str]:
    """Names of the columns that the labels `names` measure in a zoo, sorted."""
    return list(labels.columns(names, [cohort.family.effective_spec for cohort in plan.cohorts]))


def with_columns(plan: Plan, table: pa.Table, new: pa.Table) -> pa.Table:
    """A shard's table with new columns beside or instead of its own, in the order of a plan."""
    ordered = [*SCHEMA.names, *label_columns(plan)]
    missing = [name for name in ordered if name not in new.column_names and name not in table.column_names]
    if missing:
        raise ValueError(f"The zoo lacks the columns {missing} of its own labels; measure those labels again, too.")
    return pa.table({name: (new if name in new.column_names else table)[name] for name in ordered})


def refuse_other_models(plan: Plan, shard: Shard, family: Family, table: pa.Table) -> None:
    """Raise ValueError unless the models of a shard are those that this version makes of the recipe."""
    ids, task = shard.model_ids, shard.cohort.task
    values = shard.cohort.members(plan.seed, ids).values
    configs = [None] * len(ids) if task is None else _configs(task, values, len(ids))
    expected = [(ids[i], step, configs[i]) for i in range(len(ids)) for step in plan.snapshots]
    stored = zip(*(table[name].to_pylist() for name in ("model_id", "step", "task_config")), strict=True)
    if family != shard.cohort.family or list(stored) != expected:
        raise ValueError(
            "Its models are not those that this version makes of the recipe, so it can neither label nor run them."
        )
