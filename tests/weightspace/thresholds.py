"""Inputs on which a network that spikes has one answer: none of its potentials is where rounding decides."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weightspace.families.spike import SPIKE
from weightspace.rollout import generator, rollout


class Potentials(TorchDispatchMode):
    """Notes, of every spike (sequence, unit) that is computed, how near each sequence comes to a threshold."""

    def __init__(self):
        super().__init__()
        self.nearest, self.largest = [], 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is SPIKE:
            distance = args[0].abs()
            self.nearest.append(distance.amin(1))
            self.largest = max(self.largest, float(distance.max()))
        return function(*args, **(kwargs or {}))


def undecided(family, params, x, tolerance, state=None, start=None, noise=None):
    """Sequences (batch,) that rounding by the tolerance, as a share of the largest number, may make spike apart."""
    wide = {name: value.detach().double() for name, value in params.items()}
    state, noise = ({k: v.double() for k, v in part.items()} if part else None for part in (state, noise))
    start = None if start is None else start.double()
    with Potentials() as seen, torch.no_grad():
        rollout(family, wide, x.double(), start, state=state, noise=noise, method="sequential")
    found = torch.zeros(x.shape[2], dtype=torch.bool)
    for distance in seen.nearest:
        found |= distance <= 2 * tolerance * seen.largest
    return found


def decided(family, params, x, tolerance, state=None, start=None, noise=None):
    """Inputs and initial states with every undecided sequence drawn again; what does not spike is left as it is."""
    draw = generator(0, "m", "again")
    state = dict(state or {})
    for _ in range(100):
        again = undecided(family, params, x, tolerance, state, start, noise)
        if not again.any():
            return x, state
        x, state = x.clone(), {name: value.clone() for name, value in state.items()}
        for value, where in (
            (x, (slice(None), slice(None), again)),
            *((v, (slice(None), again)) for v in state.values()),
        ):
            value[where] = torch.randn(value[where].shape, dtype=value.dtype, generator=draw)
    raise AssertionError("no draw keeps all potentials away from their thresholds")
