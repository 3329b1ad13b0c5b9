"""Sums of gradients carried to the step before, deferred to the read-out's sums there: one pass instead of two."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from weightspace.rollout.native.derive.adjoint import Adjoint
from weightspace.rollout.native.trace.program import Addend, BackwardOperation, Builder, Product, Ref, SumInto


@dataclass(frozen=True)
class Deferred:
    """Lists of a step's adjoint where an earlier step that has outputs to answer for takes over some of its sums.

    next_carry = a * carry and then, one step earlier, carry += W^T dy give the same as carry = a * later + W^T dy, to
    the last bit: a sum begins with its addends, in their order.
    """

    step: tuple[BackwardOperation, ...]
    """The step's operations without the deferred sums."""
    readout: tuple[BackwardOperation, ...]
    """The read-out's operations one step earlier, with them."""
    later: Mapping[str, Ref]
    """Gradients of the states after the later step, as the read-out's operations name them."""


def deferred(back: Adjoint, builder: Builder) -> Deferred | None:
    """The lists with all sums deferred that can be, None where none can."""
    later = {name: builder.value(ref.rows) for name, ref in back.carry.items()}
    renamed = {ref.value: later[name] for name, ref in back.carry.items()}
    step, readout = list(back.step), list(back.readout)
    for name, carry in back.carry.items():
        begun = _begun(back.step, back.next_carry[name], renamed)
        ended = _ended(back.readout, carry)
        if begun is None or ended is None:
            continue
        step.remove(begun)
        addends = (*(_of_later(addend, renamed) for addend in begun.addends), *ended.addends[1:])
        readout[readout.index(ended)] = dataclasses.replace(ended, addends=addends)
    return Deferred(tuple(step), tuple(readout), later) if len(step) < len(back.step) else None


def _begun(operations: Collection[BackwardOperation], to: Ref, carried: Collection[int]) -> Product | None:
    """The one operation that writes a gradient, if it is a sum of carried gradients alone and none reads the result."""
    begun = _only_one_with(operations, to)
    if begun is None or begun.out != to or begun.terms or begun.bias is not None:
        return None
    return begun if all(addend.tile.value in carried for addend in begun.addends) else None


def _ended(operations: Collection[BackwardOperation], carry: Ref) -> Product | None:
    """The one operation that touches a carried gradient, if it is a sum that begins with it."""
    ended = _only_one_with(operations, carry)
    if ended is None or ended.out != carry or ended.addends[:1] != (Addend(carry),) or ended.bias is not None:
        return None
    others = [*(term.tile for term in ended.terms), *(addend.tile for addend in ended.addends[1:])]
    return ended if all(tile.value != carry.value for tile in others) else None


def _only_one_with(operations: Collection[BackwardOperation], ref: Ref) -> Product | None:
    """The only operation that reads or writes a value, if it is a sum."""
    touching = [operation for operation in operations if _touches(operation, ref)]
    if len(touching) != 1:
        return None
    (operation,) = touching
    return operation if isinstance(operation, Product) else None


def _touches(operation: BackwardOperation, ref: Ref) -> bool:
    written = [] if isinstance(operation, SumInto) else [operation.out]
    return any(other.value == ref.value for other in (*operation.reads, *written))


def _of_later(addend: Addend, renamed: Mapping[int, Ref]) -> Addend:
    tile = addend.tile
    return dataclasses.replace(addend, tile=renamed[tile.value].part(tile.start, tile.rows))
