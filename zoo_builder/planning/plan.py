"""The plan of a zoo: its cohorts, models, splits and shards, a pure function of the recipe."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from weightspace import families
from weightspace.families import Family
from weightspace.rollout import Streams
from weightspace.rollout.streams import derive
from weightspace.store import digest
from zoo_builder import labels, learning, tasks
from zoo_builder.learning import Learner
from zoo_builder.planning.bounds import check_counts, check_family
from zoo_builder.planning.entries import crossed, refuse_missing, spread_entry
from zoo_builder.planning.spread import Spread
from zoo_builder.tasks import Task

NUM_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Models of one family at one size on one task, that differ in seed and in the spread fields."""

    name: str
    family: Family
    task: Task | None
    learner: Learner
    task_spreads: Mapping[str, Spread]
    learning_spreads: Mapping[str, Spread]
    splits: tuple[str, ...]
    """`train`, `val` or `test` of each model."""
    split_size: str
    fold_family: int

    @property
    def model_ids(self) -> list[str]:
        """One stable name per model."""
        return self.ids(0, len(self.splits))

    def ids(self, first: int, last: int) -> list[str]:
        """Names of the models `first` to `last` - 1."""
        return [f"{self.name}-{index:04d}" for index in range(first, last)]

    def values(self, seed: int, model_ids: Sequence[str]) -> dict[str, Tensor]:
        """Each model's own value of the task's spread fields, (models,), float64."""
        return _draw(self.task_spreads, seed, model_ids, "task")

    def settings(self, seed: int, model_ids: Sequence[str]) -> dict[str, Tensor]:
        """Each model's own value of the learner's spread fields, (models,), float64."""
        return _draw(self.learning_spreads, seed, model_ids, "learning")


@dataclass(frozen=True)
class Shard:
    """Models `first` to `last` - 1 of one cohort, the unit of work."""

    index: int
    cohort: Cohort
    first: int
    last: int

    @property
    def model_ids(self) -> list[str]:
        """Names of the shard's models."""
        return self.cohort.ids(self.first, self.last)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a build needs to know; `recipe` has every default filled in."""

    recipe: Mapping[str, Any]
    cohorts: tuple[Cohort, ...]

    @property
    def seed(self) -> int:
        """The seed all random streams derive from."""
        return self.recipe["seed"]

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Numbers of updates after which params are kept, ascending."""
        return tuple(sorted(set(self.recipe["snapshots"])))

    @property
    def num_models(self) -> int:
        """Number of models of the whole zoo."""
        return sum(len(cohort.splits) for cohort in self.cohorts)

    @cached_property
    def shards(self) -> list[Shard]:
        """Every shard, in the order of the table."""
        size = self.recipe["shard_size"]
        starts = [(cohort, first) for cohort in self.cohorts for first in range(0, len(cohort.splits), size)]
        return [Shard(i, c, first, min(first + size, len(c.splits))) for i, (c, first) in enumerate(starts)]


def make_plan(recipe: Mapping[str, Any]) -> Plan:
    """The plan of a recipe that `read_recipe` has checked; ValueError where its parts do not fit each other.

    Cohorts are sorted by name, so that the order of families and tasks in the recipe has no effect.
    """
    check_counts(recipe)
    learner, learning_spreads = spread_entry(recipe["learning"], learning.load, learning.available())
    if learner.needs_task and not recipe["tasks"]:
        raise ValueError(f"{type(learner).__name__} needs a task; add `tasks` to the recipe.")
    if not learner.needs_task and (recipe["tasks"] or recipe["rollouts"] is not None):
        raise ValueError(f"{type(learner).__name__} learns no task; remove `tasks` and `rollouts` from the recipe.")
    for label in recipe["labels"]:
        labels.load(label, {})
    members = _members(recipe, learner)
    names = [_cohort_name(family, task) for family, task, _ in members]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"The recipe gives the cohort '{name}' twice; remove one of its entries.")
    splits = _splits(recipe, sorted(names))
    classes = sorted({type(family).__name__ for family, _, _ in members})
    sizes = {hidden_size(family) for family, _, _ in members}
    largest = max(sizes) if len(sizes) > 1 and recipe["splits"]["out_of_distribution"]["largest_size"] else None
    cohorts = [
        Cohort(
            name=name,
            family=family,
            task=task,
            learner=learner,
            task_spreads=spreads,
            learning_spreads=learning_spreads,
            splits=splits[name],
            split_size="out" if hidden_size(family) == largest else "in",
            fold_family=classes.index(type(family).__name__) % NUM_FOLDS,
        )
        for name, (family, task, spreads) in zip(names, members, strict=True)
    ]
    plan = Plan(recipe=recipe, cohorts=tuple(sorted(cohorts, key=lambda cohort: cohort.name)))
    _check_snapshots(plan, learner)
    return plan


def hidden_size(family: Family) -> int:
    """Number of units of a family's largest hidden layer."""
    return max(axis.size for axis in family.spec.axes.values() if axis.kind == "hidden")


def _members(recipe: Mapping[str, Any], learner: Learner) -> list[tuple[Family, Task | None, dict[str, Spread]]]:
    """Every family with every task and that one's spreads."""
    members = [
        (family, task, spreads)
        for task, spreads in _tasks(recipe)
        for entry in recipe["families"]
        for family in _families(entry, task)
    ]
    for family, task, _ in members:
        learner.check_task(task)
        check_family(family)
    return members


def _tasks(recipe: Mapping[str, Any]) -> Iterator[tuple[Task | None, dict[str, Spread]]]:
    if not recipe["tasks"]:
        yield None, {}
    for entry in recipe["tasks"]:
        for fields in crossed(entry):
            yield spread_entry(fields, tasks.load, tasks.available())


def _families(entry: Mapping[str, Any], task: Task | None) -> Iterator[Family]:
    for fields in crossed(entry):
        name = fields.pop("class")
        if task is not None:
            for size in ("input_size", "output_size"):
                needed = getattr(task, size)
                if fields.setdefault(size, needed) != needed:
                    raise ValueError(
                        f"`{size}` (={fields[size]}) of {name} does not fit {type(task).__name__}, "
                        f"which needs {needed}; leave `{size}` out of the recipe."
                    )
        if name in families.available():
            kind = families.available()[name]
            refuse_missing(name, kind, fields, "families")
        yield families.load(name, fields)


def _draw(spreads: Mapping[str, Spread], seed: int, model_ids: Sequence[str], kind: str) -> dict[str, Tensor]:
    return {key: spread.draw(Streams(seed, model_ids, f"plan/{kind}.{key}")) for key, spread in spreads.items()}


def _cohort_name(family: Family, task: Task | None) -> str:
    """A readable name, unique by a digest of everything the cohort's models share but the learner.

    Options left at their defaults take no part, so that a family or task that gains an option keeps its models.
    """
    parts = [_snake(type(family).__name__)]
    for key, value in _chosen(family).items():
        if key not in ("input_size", "output_size"):
            short = key.removeprefix("num_").removesuffix("_size")
            parts.append(str(value) if isinstance(value, str) else f"{short}{value}")
    shared: dict[str, Any] = {"family": type(family).__name__, "config": _chosen(family)}
    if task is not None:
        parts.append(_snake(type(task).__name__))
        config = {key: value for key, value in _chosen(task).items() if key not in task.varying}
        shared["task"] = {"class": type(task).__name__, "config": config}
    name = "-".join([*parts, digest(shared)[:6]])
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _chosen(declaration: Family | Task) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(declaration)}
    return {key: value for key, value in declaration.config.items() if value != defaults[key]}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _splits(recipe: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The split of every model by cohort: exact numbers overall, as even over cohorts as they divide."""
    size, seed = recipe["models_per_cohort"], recipe["seed"]
    total = size * len(names)
    counts: dict[str, dict[str, int]] = {}
    for split in ("test", "val"):
        wanted = recipe["splits"][split]
        number = wanted if isinstance(wanted, int) else round(wanted * total)
        lucky = sorted(names, key=lambda name: derive(seed, name, f"plan/{split}"))[: number % len(names)]
        counts[split] = {name: number // len(names) + (name in lucky) for name in names}
    result = {}
    for name in names:
        test, val = counts["test"][name], counts["val"][name]
        if test + val >= size:
            raise ValueError(f"`splits` leave no training models in a cohort of {size}: {test} test and {val} val.")
        order = sorted(range(size), key=lambda i: derive(seed, f"{name}-{i:04d}", "plan/split"))
        rank = {model: place for place, model in enumerate(order)}
        result[name] = tuple(
            "test" if rank[i] < test else "val" if rank[i] < test + val else "train" for i in range(size)
        )
    return result


def _check_snapshots(plan: Plan, learner: Learner) -> None:
    last = getattr(learner, "num_updates", 0)
    if plan.snapshots[-1] > last:
        raise ValueError(
            f"Snapshot {plan.snapshots[-1]} comes after the last of {last} updates of {type(learner).__name__}."
        )
