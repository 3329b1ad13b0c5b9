"""The plan of a zoo: its cohorts, models, splits and shards, a pure function of the recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from weightspace import families
from weightspace.families import Family
from weightspace.rollout import Streams
from zoo_builder import labels, learning, tasks
from zoo_builder.learning import Learner
from zoo_builder.members import Members
from zoo_builder.planning.bounds import check_counts, check_family
from zoo_builder.planning.crossing import meeting
from zoo_builder.planning.entries import crossed, refuse_missing, spread_entry
from zoo_builder.planning.pairing import Pairing, cohort_name
from zoo_builder.planning.recipe import learning_entries
from zoo_builder.planning.splitting import splits_of
from zoo_builder.planning.spread import Spread
from zoo_builder.tasks import Task
from zoo_builder.tasks.kept import kept_in

NUM_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Cohort(Pairing):
    """Models of one family at one size that one learner trains on one task; they differ in seed and spread fields."""

    name: str
    splits: tuple[str, ...]
    """`train`, `val` or `test` of each model."""
    split_size: str
    fold_family: int
    imported: tuple[str, ...] = ()
    """Names of models that come from elsewhere; models that are made here are numbered."""

    @property
    def model_ids(self) -> list[str]:
        """One stable name per model."""
        return self.ids(0, len(self.splits))

    def ids(self, first: int, last: int) -> list[str]:
        """Names of the models `first` to `last` - 1."""
        if self.imported:
            return list(self.imported[first:last])
        return [f"{self.name}-{index:04d}" for index in range(first, last)]

    def members(self, seed: int, model_ids: Sequence[str]) -> Members:
        """Models with each one's own values of the spread fields of task and learner."""
        values, settings = (
            {key: spread.draw(Streams(seed, model_ids, f"plan/{kind}.{key}")) for key, spread in spreads.items()}
            for kind, spreads in (("task", self.task_spreads), ("learning", self.learning_spreads))
        )
        return Members(seed, model_ids, values, settings)


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
    """Plan of a build: cohorts, and the recipe with every default filled in."""

    recipe: Mapping[str, Any]
    cohorts: tuple[Cohort, ...]

    @property
    def seed(self) -> int:
        """The seed all random streams derive from."""
        return int(self.recipe["seed"])

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


def make_plan(recipe: Mapping[str, Any], zoo: Path | None = None) -> Plan:
    """The plan of a recipe that `read_recipe` has checked; ValueError where its parts do not fit each other.

    Cohorts are sorted by name, so that the order of families and tasks in the recipe has no effect. `zoo` is the folder
    of the zoo, where there is one: tasks take from it what it keeps of them.
    """
    check_counts(recipe)
    with kept_in(zoo):
        pairings = _pairings(recipe)
    for label in recipe["labels"]:
        labels.load(label, {})
    several = len(learning_entries(recipe)) > 1
    names = [cohort_name(pairing, with_learner=several) for pairing in pairings]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"The recipe gives the cohort '{name}' twice; remove one of its entries.")
    imported = [tuple(models) for models in recipe.get("models", [()] * len(names))]
    size = recipe["models_per_cohort"]
    ids = {
        name: list(models) or [f"{name}-{index:04d}" for index in range(size)]
        for name, models in sorted(zip(names, imported, strict=True))
    }
    splits = splits_of(recipe, ids)
    classes = sorted({type(pairing.family).__name__ for pairing in pairings})
    sizes = {hidden_size(pairing.family) for pairing in pairings}
    largest = max(sizes) if len(sizes) > 1 and recipe["splits"]["out_of_distribution"]["largest_size"] else None
    cohorts = [
        Cohort(
            **vars(pairing),
            name=name,
            splits=splits[name],
            split_size="out" if hidden_size(pairing.family) == largest else "in",
            fold_family=classes.index(type(pairing.family).__name__) % NUM_FOLDS,
            imported=models,
        )
        for name, pairing, models in zip(names, pairings, imported, strict=True)
    ]
    plan = Plan(recipe=recipe, cohorts=tuple(sorted(cohorts, key=lambda cohort: cohort.name)))
    _check_snapshots(plan)
    return plan


def hidden_size(family: Family) -> int:
    """Number of units of a family's largest hidden layer."""
    return max(axis.size for axis in family.spec.axes.values() if axis.kind == "hidden")


def _pairings(recipe: Mapping[str, Any]) -> list[Pairing]:
    """Families with their tasks under every learner; ValueError where one of them cannot be trained."""
    meets = meeting(recipe)
    pairings = [
        Pairing(family=family, task=task, learner=learner, task_spreads=of_task, learning_spreads=of_learner)
        for learner, of_learner in _learners(recipe)
        for of_entry, task, of_task in _tasks(recipe)
        for entry in recipe["families"]
        for fields in crossed(entry)
        if meets(fields, of_entry)
        for family in [_family(fields, task)]
    ]
    if "models" in recipe and len(pairings) != len(recipe["models"]):
        raise ValueError("`models` names the models of each entry of `families`, which must be one family each.")
    for pairing in pairings:
        check_family(pairing.family)
        pairing.learner.check(pairing.family, pairing.task)
    return pairings


def _learners(recipe: Mapping[str, Any]) -> Iterator[tuple[Learner, dict[str, Spread]]]:
    for entry in learning_entries(recipe):
        learner, spreads = spread_entry(entry, learning.load, learning.available())
        name = type(learner).__name__
        if learner.makes_params == ("models" in recipe):
            raise ValueError(
                "Recipes of imported models have `models` and the learner Imported, others have neither; make a zoo "
                "of models from elsewhere with `zoo-builder import`."
            )
        if learner.needs_task and not recipe["tasks"]:
            raise ValueError(f"{name} needs a task; add `tasks` to the recipe.")
        without_task = not learner.needs_task and not (learner.takes_task and recipe["tasks"])
        if without_task and (recipe["tasks"] or recipe["rollouts"] is not None):
            raise ValueError(f"{name} learns no task; remove `tasks` and `rollouts` from the recipe.")
        yield learner, spreads


def _tasks(recipe: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Task | None, dict[str, Spread]]]:
    if not recipe["tasks"]:
        yield {}, None, {}
    for entry in recipe["tasks"]:
        for fields in crossed(entry):
            task, spreads = spread_entry(fields, tasks.load, tasks.available())
            # Refused now, not after training, when the manifest is written.
            task.refuse_undeclared()
            yield fields, task, spreads


def _family(entry: Mapping[str, Any], task: Task | None) -> Family:
    name, fields = entry["class"], {key: value for key, value in entry.items() if key != "class"}
    if task is not None:
        reads_start = "start_size" in getattr(families.available().get(name), "__dataclass_fields__", ())
        for size in ("input_size", "output_size", *("start_size",) * reads_start):
            needed = getattr(task, size)
            if fields.setdefault(size, needed) != needed:
                raise ValueError(
                    f"`{size}` (={fields[size]}) of {name} does not fit {type(task).__name__}, "
                    f"which needs {needed}; leave `{size}` out of the recipe."
                )
    if name in families.available():
        refuse_missing(name, families.available()[name], fields, "families")
    return families.load(name, fields)


def _check_snapshots(plan: Plan) -> None:
    for cohort in plan.cohorts:
        last = getattr(cohort.learner, "num_updates", 0)
        if plan.snapshots[-1] > last:
            name = type(cohort.learner).__name__
            raise ValueError(f"Snapshot {plan.snapshots[-1]} comes after the last of {last} updates of {name}.")
