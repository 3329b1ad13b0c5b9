"""Traced families: the program of tile operations of a step and a read-out, traced once with torch.fx."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from weightspace.families import Family
from weightspace.rollout.native.derive.adjoint import adjoint
from weightspace.rollout.native.derive.sound import refuse_unsound
from weightspace.rollout.native.trace.capture import captured
from weightspace.rollout.native.trace.flat import Prologue
from weightspace.rollout.native.trace.program import Builder, Program, Untraceable
from weightspace.rollout.native.trace.prologue import prologue_program
from weightspace.rollout.native.trace.start import starts_alike
from weightspace.rollout.native.trace.tracer import Tracer

logger = logging.getLogger(__name__)
BATCHES = (7, 33)
"""Numbers of sequences in traced calls; axes are told apart by position: a family may have an axis of 7."""


@dataclass(frozen=True)
class Traced:
    """A family's step and readout as a program over tensors of its params."""

    program: Program
    builder: Builder
    stored: Mapping[str, int]
    """The params that the program reads as they are, its tensors 0, 1, ...: how many numbers each has."""
    prologue: fx.GraphModule | None
    """Prologue, which computes further tensors from the params of one model (masks, clamps, reciprocals)."""
    computed: tuple[int, ...]
    """Number of elements of each of those further tensors."""
    flat: Prologue | None = None
    """The prologue as a flat program, None if there is no prologue or it has no flat form."""
    starts_alike: bool = False
    """Whether every model starts from the same state."""


@torch.inference_mode(False)
def trace(family: Family, dtype: torch.dtype) -> Traced:
    """The program of one family at one size; Untraceable if its step or readout is beyond what programs express.

    Traced with two numbers of sequences, of which nothing in the program may depend.
    """
    first, second = (_traced(family, dtype, batch) for batch in BATCHES)
    if first.program != second.program or _described(first.prologue) != _described(second.prologue):
        raise Untraceable("what it computes depends on the number of sequences")
    _try_prologue(family, first, dtype)
    builder = first.builder.copy()
    back = adjoint(first.program, builder)
    refuse_unsound(first.program, builder.rows, back, once=True)
    return dataclasses.replace(first, flat=_flat_prologue(first, dtype), starts_alike=starts_alike(family))


def _traced(family: Family, dtype: torch.dtype, batch: int) -> Traced:
    graph = captured(family, dtype, batch)
    tracer = Tracer(family, graph, dtype)
    try:
        program, prologue = tracer.read()
    except Untraceable:
        raise
    except Exception as error:
        # An operator that no rule foresaw is left to torch.
        raise Untraceable(f"its graph could not be read ({type(error).__name__}: {error})") from error
    computed = tuple(int(node.meta["val"].numel()) for node in tracer.from_params)
    stored = {name: math.prod(family.spec.shape(name)) for name in family.spec.tensors}
    return Traced(program, tracer.builder, stored, prologue, computed)


def _flat_prologue(traced: Traced, dtype: torch.dtype) -> Prologue | None:
    if traced.prologue is None:
        return None
    try:
        return prologue_program(traced.prologue, dtype)
    except Untraceable as reason:
        logger.debug("What is computed from params is left to torch: %s.", reason)
        return None


def _described(prologue: fx.GraphModule | None) -> tuple[str, ...]:
    """The operations of a prologue and the numbers that it holds, as text."""
    if prologue is None:
        return ()
    return (str(prologue.graph), *(f"{k}: {v.tolist()}" for k, v in prologue.named_buffers()))


def _try_prologue(family: Family, traced: Traced, dtype: torch.dtype) -> None:
    """Raise Untraceable unless the prologue runs on a stack of models and gives tensors of the right dtype."""
    if traced.prologue is None:
        return
    params = (torch.ones(2, *family.spec.shape(name), dtype=dtype) for name in traced.stored)
    try:
        tensors = torch.func.vmap(traced.prologue)(*params)
    except Exception as error:
        raise Untraceable(f"what it computes from params cannot be stacked ({error})") from error
    for tensor in tensors:
        if tensor.dtype != dtype:
            raise Untraceable(f"it computes {tensor.dtype} from params of {dtype}")
