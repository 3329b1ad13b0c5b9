"""What models cost an encoder, and what is said where a machine has no room or no device for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from weightspace.families import Family
from weightspace.store import Stack


def nodes_of(family: Family) -> int:
    """Number of nodes of the graph of one model: its inputs, hidden units, outputs and factors."""
    axes = family.effective_spec.axes.values()
    return sum(axis.size for axis in axes if axis.kind != "channel")


def pairs_of(family: Family) -> int:
    """Number of pairs of nodes of one model, which is what encoding it costs."""
    return nodes_of(family) ** 2


@contextmanager
def room_for(stacks: Sequence[Stack]) -> Iterator[None]:
    """Say in one line, as a ValueError, which models an allocation that failed was made for, and the way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        largest = max(stacks, key=lambda stack: pairs_of(stack.family))
        family, count = largest.family, sum(len(stack) for stack in stacks)
        way_out = f"lower `batch_size` below {count}" if count > 1 else "use a machine with more of it"
        raise ValueError(
            f"There is not enough memory for {count} model{'s' * (count > 1)} at once, the largest of which is a "
            f"{type(family).__name__} of {nodes_of(family)} nodes (row {int(largest.rows[0])}); {way_out}, or make "
            "the encoder narrower."
        ) from error


def _is_lack_of_memory(error: BaseException) -> bool:
    # torch has no type of its own for this on the CPU.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def usable_device(name: str) -> torch.device:
    """The device of this name; ValueError where there is no such name, or no such device here."""
    try:
        device = torch.device(name)
        # What is not there is told by the first tensor, in as many ways as there are kinds of devices.
        torch.zeros(1, device=device).cpu()
    except (AssertionError, RuntimeError, NotImplementedError):
        raise ValueError(f"There is no device '{name}' here; choose `cpu` or a device of this machine.") from None
    return device
