"""How large a plan may be, by arithmetic alone, so that what cannot be built is refused before anything is laid out."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightspace.families import Family
from zoo_builder.learning import Learner
from zoo_builder.tasks import Task
from zoo_builder.workers import container

if TYPE_CHECKING:
    from zoo_builder.planning.plan import Cohort, Plan

MOST_COHORTS = 10_000
MOST_MODELS = 1_000_000
MOST_ROWS = 20_000_000
"""Of the table: one for each snapshot of each model."""
MOST_PARAMETERS = 2**40
TOGETHER = 64
"""Models that are computed together on the CPU at most, see `stacks`."""


def check_counts(recipe: Mapping[str, Any]) -> None:
    """Raise ValueError, with the field, where the lists of a recipe cross to more than a zoo holds, or to nothing."""
    lengths: dict[str, int] = {}
    cohorts = 1
    for name in ("families", "tasks"):
        crossed = []
        for index, entry in enumerate(recipe[name]):
            lists = {f"{name}[{index}].{key}": len(value) for key, value in entry.items() if isinstance(value, list)}
            crossed.append(math.prod(lists.values()))
            lengths |= lists
        lengths[name] = len(crossed)
        cohorts *= sum(crossed) if crossed else 1
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
        raise ValueError(f"One model of {type(family).__name__} has {parameters(family):,} weights; {_blame(family)}.")


def check_memory(plan: Plan, memory: int | None = None) -> None:
    """Raise ValueError, with the field, for a cohort whose models cannot be together in this machine's memory (bytes).

    What is counted is the least that a shard takes: its params with what an optimiser keeps beside them, and the
    inputs and targets of one draw.
    """
    memory = container.memory() if memory is None else memory
    for cohort in plan.cohorts:
        least = least_bytes(plan, cohort)
        if memory is not None and least > memory:
            raise ValueError(
                f"A shard of the cohort '{cohort.name}' takes {least / 2**30:,.1f} GB of memory at least, and this "
                f"machine has {memory / 2**30:,.1f} GB; {_what_to_lower(plan, cohort)}."
            )


@contextlib.contextmanager
def memory_named(plan: Plan, cohort: Cohort) -> Iterator[None]:
    """Say of memory that cannot be had which cohort wanted it, and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Torch's own words on the CPU, and those of CUDA.
        if isinstance(error, RuntimeError) and not re.search("can't allocate|out of memory", str(error)):
            raise
        raise ValueError(
            f"There is not enough memory for models of the cohort '{cohort.name}'; {_what_to_lower(plan, cohort)}."
        ) from None


def least_bytes(plan: Plan, cohort: Cohort) -> int:
    """Bytes that a shard of a cohort takes at the least while it is made."""
    models = min(plan.recipe["shard_size"], len(cohort.splits))
    together, weights = min(models, TOGETHER), 4 * parameters(cohort.family)
    learning = together * 4 * weights
    stored = models * len(plan.snapshots) * weights
    if cohort.task is None:
        return max(learning, stored)
    sequence = 4 * cohort.task.num_steps * (cohort.task.input_size + 1)
    drawn = together * cohort.learner.most_sequences * sequence
    rollouts = plan.recipe["rollouts"] or {"sequences": 0}
    kept = models * len(plan.snapshots) * rollouts["sequences"] * cohort.task.num_steps * cohort.task.output_size * 4
    return max(learning + drawn, stored + kept)


def _what_to_lower(plan: Plan, cohort: Cohort) -> str:
    rollouts = plan.recipe["rollouts"] or {"sequences": 0}
    fields = {"shard_size": plan.recipe["shard_size"], "rollouts.sequences": rollouts["sequences"]}
    return _blame(cohort.family, cohort.task, cohort.learner, fields)


def _blame(*parts: Family | Task | Learner | Mapping[str, Any] | None) -> str:
    """What to lower: the largest number that the recipe gives for any of these."""
    configs = [part if isinstance(part, Mapping) else part.config for part in parts if part is not None]
    name, value = max((pair for config in configs for pair in _whole_numbers(config)), key=lambda pair: pair[1])
    return f"lower `{name}` (={value:,})"


def _whole_numbers(config: Mapping[str, Any], path: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _whole_numbers(value, (*path, name))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield ".".join((*path, name)), value
