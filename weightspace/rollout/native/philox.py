"""Random words of many streams at once, natively: the same integers as torch finds, several times as fast."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from weightspace.rollout.native.engine.compiler import NoNative, library
from weightspace.rollout.native.engine.job import INT, POINTER


@functools.cache
def draws_here() -> bool:
    """Whether this machine can compile the generator."""
    try:
        library("philox.c")
    except NoNative:
        return False
    return True


def native_words(key: tuple[Tensor, Tensor], position: int, count: int) -> Tensor:
    """Words (streams, count), int64, below 2**32, from the block `position` on; a key is two words (streams, 1)."""
    key_words = [word.contiguous() for word in key]
    out = torch.empty(len(key_words[0]), count, dtype=torch.int64)
    pointers = [POINTER(tensor.data_ptr()) for tensor in (*key_words, out)]
    library("philox.c").random_words(INT(len(out)), INT(count), INT(position), *pointers)
    return out
