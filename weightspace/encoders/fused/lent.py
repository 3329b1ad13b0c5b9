"""Memory that one call leaves to the next: the system takes longer to hand out fresh pages than C to fill them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST = 2**28
"""Most bytes that wait for the next call."""
_Memory = np.ndarray[Any, np.dtype[np.float32]]
_waiting: dict[tuple[int, int], _Memory] = {}
"""By address and bytes: taking one out is a single step, so that of two threads one gets it."""


def lent(size: int) -> Tensor:
    """Room for so many numbers, with anything in it; once no tensor has it any longer, the next call gets it."""
    fitting = [key for key, one in list(_waiting.items()) if size <= one.size <= 4 * size]
    owner = next((one for one in (_waiting.pop(key, None) for key in fitting) if one is not None), None)
    if owner is None:
        owner = torch.empty(size).numpy()
    # The tensor holds the view, and nothing else does.
    view = owner[:size]
    weakref.finalize(view, _give_back, owner).atexit = False
    return torch.from_numpy(view)


def _give_back(owner: _Memory) -> None:
    if sum(one.nbytes for one in list(_waiting.values())) + owner.nbytes <= MOST:
        _waiting[owner.ctypes.data, owner.nbytes] = owner
