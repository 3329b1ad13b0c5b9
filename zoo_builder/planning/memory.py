"""Memory that a plan's shards take on a machine, and the field to lower where it is too much."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from weightspace import container
from zoo_builder.planning.bounds import parameters, what_to_lower
from zoo_builder.planning.plan import Cohort, Plan
from zoo_builder.stacks import STACK


def check_memory(plan: Plan, memory: int | None = None) -> None:
    """Raise ValueError, with the field, for a cohort whose models cannot be together in this machine's memory (bytes).

    Counted is the least that a shard takes: its params, the moments of an optimiser, and the inputs and targets of
    one draw.
    """
    memory = container.memory() if memory is None else memory
    for cohort in plan.cohorts:
        least = least_bytes(plan, cohort)
        if memory is not None and least > memory:
            raise ValueError(
                f"A shard of the cohort '{cohort.name}' takes {least / 2**30:,.1f} GB of memory at least, and this "
                f"machine has {memory / 2**30:,.1f} GB; {_way_out(plan, cohort)}."
            )


@contextlib.contextmanager
def memory_named(plan: Plan, cohort: Cohort) -> Iterator[None]:
    """Name the cohort whose memory could not be allocated, and the field to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Torch's own words on the CPU, and those of CUDA.
        if isinstance(error, RuntimeError) and not re.search("can't allocate|out of memory", str(error)):
            raise
        raise ValueError(
            f"There is not enough memory for models of the cohort '{cohort.name}'; {_way_out(plan, cohort)}."
        ) from None


def least_bytes(plan: Plan, cohort: Cohort) -> int:
    """Bytes that a shard of a cohort takes at the least while it is made."""
    models = min(int(plan.recipe["shard_size"]), len(cohort.splits))
    together, weights = min(models, STACK), 4 * parameters(cohort.family)
    learning = together * 4 * weights
    stored = models * len(plan.snapshots) * weights
    if cohort.task is None:
        return max(learning, stored)
    sequence = 4 * cohort.task.num_steps * (cohort.task.input_size + 1)
    drawn = together * cohort.learner.most_sequences * sequence
    sequences = int((plan.recipe["rollouts"] or {"sequences": 0})["sequences"])
    kept = models * len(plan.snapshots) * sequences * cohort.task.num_steps * cohort.task.output_size * 4
    return max(learning + drawn, stored + kept)


def _way_out(plan: Plan, cohort: Cohort) -> str:
    rollouts = plan.recipe["rollouts"] or {"sequences": 0}
    fields = {"shard_size": plan.recipe["shard_size"], "rollouts.sequences": rollouts["sequences"]}
    return what_to_lower(cohort.family, cohort.task, cohort.learner, fields)
