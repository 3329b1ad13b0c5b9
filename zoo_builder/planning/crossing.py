"""Which families of a recipe learn which of its tasks: all of them, or a few that take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from weightspace.store import canonical
from zoo_builder.planning.entries import crossed

Fields = Mapping[str, Any]
Meets = Callable[[Fields, Fields], bool]


def meeting(recipe: Mapping[str, Any]) -> Meets:
    """Whether a family and a task, each by its class and fields without lists, make a cohort.

    With `tasks_per_family` n, family number i learns the n tasks from number i n on, round the list. Numbers are those
    in the order of the fields' text: the sizes of one family learn different tasks, every task has the same number
    of cohorts but one, and the order in the recipe has no effect. ValueError where there are not so many tasks.
    """
    count: int | None = recipe.get("tasks_per_family")
    if count is None:
        return lambda family, task: True
    families, tasks = (
        sorted(canonical(fields) for entry in recipe[kind] for fields in crossed(entry))
        for kind in ("families", "tasks")
    )
    if count > len(tasks):
        raise ValueError(
            f"`tasks_per_family` (={count}) must be at most the number of tasks, {len(tasks)}; leave it out for all."
        )
    number_of_family = {text: number for number, text in enumerate(families)}
    number_of_task = {text: number for number, text in enumerate(tasks)}

    def meets(family: Fields, task: Fields) -> bool:
        first = number_of_family[canonical(family)] * count
        return (number_of_task[canonical(task)] - first) % len(tasks) < count

    return meets
