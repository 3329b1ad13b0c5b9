"""Sequences that models are run on: those that their zoo stores, else held-out ones of their task, drawn again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Streams
from weightspace.rollout.noise import draw_noise
from weightspace.spec import Params
from weightspace.store import Stack, Zoo
from zoo_builder.build import recorded_plan
from zoo_builder.members import Members
from zoo_builder.planning.plan import Plan, Shard
from zoo_builder.shard import held_out
from zoo_builder.table import refuse_other_models

NUM_SEQUENCES, NUM_STEPS = 32, 48
"""Sequences of a model whose zoo stores none, and their length where it has no task."""
MODELS_TOGETHER = 64


class Shown(NamedTuple):
    """Models of one family and size, and the sequences that they are run on."""

    family: Family
    params: Params
    """(models, ...)."""
    x: Tensor
    """Inputs (models, time, sequence, input)."""
    start: Tensor
    """Inputs to the initial state, (models, sequence, start)."""
    noise: Mapping[str, Tensor]
    """Noise (models, time, sequence, axis) by name."""


def of_zoo(zoo: Zoo, rows: Sequence[int]) -> Iterator[Shown]:
    """Models of a zoo, in the order of the rows, with the sequences of its rollouts.

    These are drawn again where the zoo does not store all that a rollout needs: it keeps inputs, but neither noise nor
    starts. ValueError where this version cannot read the recipe.
    """
    plan = None
    for stack in zoo.stacks(rows, MODELS_TOGETHER):
        index, family = zoo.shard_of(int(stack.rows[0])), stack.family
        if zoo.shards[index].has_rollouts and not family.spec.noise and not family.reads_start:
            x = zoo.rollouts(stack.rows.tolist())[0].transpose(1, 2)
            yield Shown(family, stack.params, x, x.new_zeros(len(x), x.shape[2], 0), {})
            continue
        plan = plan or recorded_plan(zoo.path, zoo.manifest)
        refuse_other_models(plan, plan.shards[index], family, zoo.shard_table(index))
        yield _drawn_again(plan, plan.shards[index], stack, zoo.shard_rows(index).start)


def _drawn_again(plan: Plan, shard: Shard, stack: Stack, first_row: int) -> Shown:
    """The held-out sequences of a task as a build draws them, the same at every snapshot of a model."""
    places = [(row - first_row) // len(plan.snapshots) for row in stack.rows.tolist()]
    ids = [shard.model_ids[place] for place in places]
    if shard.cohort.task is None:
        return without_task(stack, Members(plan.seed, ids))
    everyone = shard.cohort.members(plan.seed, shard.model_ids)
    values = {name: column[places] for name, column in everyone.values.items()}
    rollouts = plan.recipe["rollouts"]
    count = NUM_SEQUENCES if rollouts is None else rollouts["sequences"]
    batch, noise = held_out(shard.cohort, values, Streams(plan.seed, ids, "rollouts"), count)
    return Shown(stack.family, stack.params, batch.x, batch.start, noise)


def without_task(stack: Stack, members: Members) -> Shown:
    """Models with the recorded inputs of their members, else with standard normal ones from each model's stream."""
    family, streams = stack.family, Streams(members.seed, members.ids, "rollouts")
    if members.recorded is None:
        x = streams.normal(NUM_STEPS, NUM_SEQUENCES, family.input_size)
    else:
        x = members.recorded.transpose(1, 2)
    noise = draw_noise(family.spec, streams, *x.shape[1:3])
    return Shown(family, stack.params, x, x.new_zeros(len(x), x.shape[2], family.reads_start), noise)
