"""Random streams keyed by (seed, model id, purpose), drawn for many models at once.

Numbers come from Philox-4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011): each is a pure
function of its model's key and its position, so a model's draws depend neither on its neighbours nor on the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
BLOCK = 1 << 15
"""Pairs of normal draws that are made at once: what is computed on the way to them stays in cache."""


def philox(counter: Sequence[Tensor], key: tuple[Tensor, Tensor], rounds: int = 10) -> list[Tensor]:
    """Four int64 tensors of 32 random bits each, for four counter words and two key words (int64, broadcastable)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The product wraps modulo 2**64, which keeps both halves exact.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def derive_key(*parts: int | str) -> int:
    """A 63-bit key of the random stream that these parts identify, such as (seed, model id, purpose)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, model_id: str, purpose: str) -> torch.Generator:
    """A torch generator of one stream, for draws made once per model (such as initial params)."""
    return torch.Generator().manual_seed(derive_key(seed, model_id, purpose))


class Streams:
    """One random stream per model, advanced together; every draw leads with the models axis."""

    def __init__(self, seed: int, model_ids: Sequence[str], purpose: str, device: torch.device | str = "cpu") -> None:
        keys = torch.tensor([derive_key(seed, model_id, purpose) for model_id in model_ids], dtype=torch.int64)
        self.seed, self.model_ids, self.purpose = seed, tuple(model_ids), purpose
        self.device = torch.device(device)
        self._key = ((keys & _MASK).to(device)[:, None], (keys >> 32).to(device)[:, None])
        self._position = 0

    def __len__(self) -> int:
        return len(self.model_ids)

    def fork(self, purpose: str) -> Streams:
        """Fresh streams of the same models for another purpose, unaffected by draws made here."""
        return Streams(self.seed, self.model_ids, f"{self.purpose}/{purpose}", self.device)

    def bits(self, *shape: int) -> Tensor:
        """Random 32-bit words (models, *shape) as int64."""
        count = math.prod(shape)
        words = self._words(count)
        self._position += -(-count // 4)
        return words.reshape(len(self), *shape)

    def _words(self, count: int, first: int = 0) -> Tensor:
        """Words (models, count), the `first`-th from here on, from C where that is available, else from torch."""
        start, skipped = self._position + first // 4, first % 4
        count += skipped
        if self.device.type == "cpu":
            from weightspace.rollout.native.philox import draws_here, native_words

            if draws_here():
                return native_words(self._key, start, count)[:, skipped:]
        position = torch.arange(start, start + -(-count // 4), dtype=torch.int64, device=self.device)[None]
        zero = torch.zeros((), dtype=torch.int64, device=self.device)
        words = philox((position & _MASK, position >> 32, zero, zero), self._key)
        return torch.stack(words, dim=-1).flatten(1)[:, skipped:count]

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draws (models, *shape) from [0, 1), with 24 random bits in float32 and 32 in float64."""
        words = self.bits(*shape)
        if dtype == torch.float32:
            return (words >> 8).to(dtype) * 2.0**-24
        return words.to(dtype) * 2.0**-32

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal draws (models, *shape), by the Box-Muller transform."""
        count = math.prod(shape)
        half = -(-count // 2)
        draws = torch.empty(len(self), 2, half, dtype=dtype, device=self.device)
        block = 4 * max(1, BLOCK // (4 * max(1, len(self))))
        for first in range(0, half, block):
            part = slice(first, min(first + block, half))
            shares, turns = (
                self._words(part.stop - first, number).to(torch.float64) * 2.0**-32 for number in (first, half + first)
            )
            radius, angle = torch.sqrt(-2 * torch.log1p(-shares)), 2 * math.pi * turns
            draws[:, 0, part], draws[:, 1, part] = radius * torch.cos(angle), radius * torch.sin(angle)
        self._position += -(-2 * half // 4)
        return draws.flatten(1)[:, :count].reshape(len(self), *shape)

    def integers(self, high: int | Tensor, *shape: int) -> Tensor:
        """Integers (models, *shape) from 0 to high - 1; high below 2**31, one for all or (models,)."""
        words = self.bits(*shape)
        if isinstance(high, Tensor):
            high = high.to(self.device).reshape(-1, *[1] * len(shape))
        return words * high >> 32
