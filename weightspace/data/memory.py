"""Memory of encoding models, and errors where a machine lacks memory or the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import torch

from weightspace.families import Family
from weightspace.graph import num_nodes
from weightspace.store import Stack

logger = logging.getLogger(__name__)

LOGGED = 2**30
"""Bytes from which an estimate is logged."""


def nodes_of(family: Family) -> int:
    """Number of nodes of the graph of one model."""
    return num_nodes(family.effective_spec)


def pairs_of(family: Family) -> int:
    """Number of pairs of nodes of one model: the memory of encoding it is proportional to them."""
    return nodes_of(family) ** 2


def refuse_beyond(stacks: Sequence[Stack], bytes_of: Callable[[Family], int], free: int | None) -> None:
    """Raise ValueError where reading these models takes more than `free` bytes, by the estimate of an encoder.

    An estimate of GBs is logged before they are spent; None is an unknown number.
    """
    needed = sum(len(stack) * bytes_of(stack.family) for stack in stacks)
    if needed < LOGGED:
        return
    models = f"{_named(stacks)} takes about {needed / 2**30:.1f} GB of memory"
    if free is not None and needed > free:
        raise ValueError(
            f"Reading {models}, and {free / 2**30:.1f} GB are free; {_way_out(stacks)}, make the encoder narrower, or "
            "take one that does not hold every pair of units, such as Spectra, Statistics or EquivariantLinear."
        )
    largest = max(stacks, key=lambda stack: pairs_of(stack.family))
    _tell(type(largest.family).__name__, nodes_of(largest.family), f"{needed / 2**30:.1f} GB of memory")


@lru_cache(maxsize=256)
def _tell(family: str, nodes: int, needed: str) -> None:
    """Say once how much memory models of a size take."""
    logger.info("Reading a %s of %d nodes takes about %s.", family, nodes, needed)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return None


@contextmanager
def room_for(stacks: Sequence[Stack]) -> Iterator[None]:
    """Turn a failed allocation into a ValueError of one line that names the models and the way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise ValueError(
            f"There is not enough memory for {_named(stacks)}; {_way_out(stacks)}, or make the encoder narrower."
        ) from error


def _named(stacks: Sequence[Stack]) -> str:
    largest = max(stacks, key=lambda stack: pairs_of(stack.family))
    count = sum(len(stack) for stack in stacks)
    return (
        f"{count} model{'s' * (count > 1)} at once, the largest of which is a {type(largest.family).__name__} of "
        f"{nodes_of(largest.family)} nodes (row {int(largest.rows[0])})"
    )


def _way_out(stacks: Sequence[Stack]) -> str:
    count = sum(len(stack) for stack in stacks)
    return f"lower `batch_size` below {count}" if count > 1 else "use a machine with more of it"


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
