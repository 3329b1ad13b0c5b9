"""Memory that one call leaves to the next: the system takes longer to hand out fresh pages than C to fill them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST = 2**28
"""Most bytes that wait for the next call."""
_waiting: list[np.ndarray[Any, np.dtype[np.float32]]] = []


def lent(size: int) -> Tensor:
    """Room for so many numbers, with anything in it; once no tensor has it any longer, the next call gets it."""
    owner = next((one for one in _waiting if size <= one.size <= 4 * size), None)
    if owner is None:
        owner = torch.empty(size).numpy()
    else:
        _waiting[:] = [one for one in _waiting if one is not owner]
    # The tensor holds the view, and nothing else does.
    view = owner[:size]
    weakref.finalize(view, _give_back, owner).atexit = False
    return torch.from_numpy(view)


def _give_back(owner: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    if sum(one.nbytes for one in _waiting) + owner.nbytes <= MOST:
        _waiting.append(owner)
