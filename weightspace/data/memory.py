"""Memory of encoding models, and errors where a machine lacks memory or the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from weightspace.families import Family
from weightspace.graph import num_nodes
from weightspace.store import Stack


def nodes_of(family: Family) -> int:
    """Number of nodes of the graph of one model."""
    return num_nodes(family.effective_spec)


def pairs_of(family: Family) -> int:
    """Number of pairs of nodes of one model: the memory of encoding it is proportional to them."""
    return nodes_of(family) ** 2


@contextmanager
def room_for(stacks: Sequence[Stack]) -> Iterator[None]:
    """Turn a failed allocation into a ValueError of one line that names the models and the way out."""
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
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def usable_device(name: str) -> torch.device:
    """The device of this name; ValueError if the name is unknown or the machine has no such device."""
    try:
        device = torch.device(name)
        # A device that is not there fails at the first tensor, with errors that differ between kinds of devices.
        torch.zeros(1, device=device).cpu()
    except (AssertionError, RuntimeError, NotImplementedError):
        raise ValueError(f"There is no device '{name}' here; choose `cpu` or a device of this machine.") from None
    return device
