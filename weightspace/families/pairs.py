"""Pairs of a unit and a source as one row of numbers, so that what is computed of each pair runs in C."""

from __future__ import annotations

import torch
from torch import Tensor


def skewed(weight: Tensor) -> Tensor:
    """Weights (to, from, ...) as pairs (from * to, ...): number d * to + i is unit i with source (i + d) % from.

    With neighbours on the diagonals, the sources of all pairs are slices of one row of sources: no gather is needed.
    """
    to, source = weight.shape[:2]
    wide = torch.cat([weight] * _copies(to, source), 1)
    # A row longer by one moves each unit's sources by one.
    flat = torch.cat([wide.flatten(0, 1), wide[:, 0]])
    return flat.view(to, -1, *weight.shape[2:])[:, :source].transpose(0, 1).flatten(0, 1)


def paired(x: Tensor, to: int) -> Tensor:
    """Sources (batch, from) of all pairs (batch, from * to), in the order of `skewed`."""
    source = x.shape[-1]
    around = torch.cat([x] * _copies(to, source), -1)
    return torch.cat([around[:, d : d + to] for d in range(source)], -1)


def summed(pairs: Tensor, to: int) -> Tensor:
    """Sums over sources (batch, to) of numbers of pairs (batch, from * to), in the order of `skewed`."""
    count = pairs.shape[-1] // to
    while count > 1:
        half = count // 2
        halved = pairs[:, : half * to] + pairs[:, half * to : 2 * half * to]
        pairs = torch.cat([halved, pairs[:, 2 * half * to :]], -1) if count % 2 else halved
        count -= half
    return pairs


def _copies(to: int, source: int) -> int:
    """Copies of a row of sources in which every unit finds all of its own."""
    return -(-to // source) + 1
