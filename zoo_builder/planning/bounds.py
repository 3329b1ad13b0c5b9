"""Limits on the size of a plan, by arithmetic alone, so that one too large is refused before it is laid out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weightspace.families import Family
from zoo_builder.learning import Learner
from zoo_builder.planning.recipe import learning_entries
from zoo_builder.tasks import Task

MOST_COHORTS = 10_000
MOST_MODELS = 1_000_000
MOST_ROWS = 20_000_000
"""Rows of the table, one for each snapshot of each model."""
MOST_PARAMETERS = 2**40


def check_counts(recipe: Mapping[str, Any]) -> None:
    """Raise ValueError, with the field, where the lists of a recipe give more models than a zoo holds, or none."""
    lengths: dict[str, int] = {}
    cohorts = len(learning_entries(recipe))
    for name in ("families", "tasks"):
        crossed = []
        for index, entry in enumerate(recipe[name]):
            lists = {f"{name}[{index}].{key}": len(value) for key, value in entry.items() if isinstance(value, list)}
            crossed.append(math.prod(lists.values()))
            lengths |= lists
        lengths[name] = len(crossed)
        number = sum(crossed) if crossed else 1
        cohorts *= min(number, recipe.get("tasks_per_family", number)) if name == "tasks" else number
    empty = [field for field, length in lengths.items() if "." in field and not length]
    if empty:
        raise ValueError(f"`{empty[0]}` is an empty list, which leaves nothing to build; give at least one.")
    if cohorts > MOST_COHORTS:
        longest = max(lengths, key=lambda field: lengths[field])
        raise ValueError(
            f"The lists of the recipe cross to {cohorts:,} cohorts, but a zoo has {MOST_COHORTS:,} at most; shorten "
            f"`{longest}`, which lists {lengths[longest]:,}."
        )
    size, snapshots = recipe["models_per_cohort"], len(set(recipe["snapshots"]))
    if cohorts * size > MOST_MODELS:
        raise ValueError(
            f"`models_per_cohort` (={size:,}) makes {cohorts * size:,} models in {cohorts:,} cohort(s), but a zoo has "
            f"{MOST_MODELS:,} at most."
        )
    if cohorts * size * snapshots > MOST_ROWS:
        raise ValueError(
            f"`snapshots` (={snapshots:,} of them) make {cohorts * size * snapshots:,} rows of {cohorts * size:,} "
            f"models, but a zoo has {MOST_ROWS:,} at most."
        )


def parameters(family: Family) -> int:
    """Numbers that one model stores."""
    return sum(math.prod(family.spec.shape(name)) for name in family.spec.tensors)


def check_family(family: Family) -> None:
    """Raise ValueError, with the field, where one model of a family is larger than any memory."""
    if parameters(family) > MOST_PARAMETERS:
        name = type(family).__name__
        raise ValueError(f"One model of {name} has {parameters(family):,} weights; {what_to_lower(family)}.")


def what_to_lower(*parts: Family | Task | Learner | Mapping[str, Any] | None) -> str:
    """Field to lower: that of the largest number in the configs of these parts of a recipe."""
    configs = [part if isinstance(part, Mapping) else part.config for part in parts if part is not None]
    name, value = max((pair for config in configs for pair in _whole_numbers(config)), key=lambda pair: pair[1])
    return f"lower `{name}` (={value:,})"


def _whole_numbers(config: Mapping[str, Any], path: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _whole_numbers(value, (*path, name))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield ".".join((*path, name)), value
