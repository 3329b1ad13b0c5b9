"""Baselines that count: unigrams and n-grams of a text, in bits per character."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unigram_bits(train: Tensor, test: Tensor, num_symbols: int) -> float:
    """Bits per character of a test text under the shares of characters in a training text, each counted once more."""
    counts = torch.bincount(train, minlength=num_symbols).double() + 1
    return float(-(counts / counts.sum()).log2()[test].mean())


def ngram_bits(train: Tensor, test: Tensor, num_symbols: int, order: int = 5) -> float:
    """Bits per character of a test text given the `order` - 1 characters before each, as a training text has them.

    p_k(c | context) = (N(context, c) + T p_{k-1}(c | shorter context)) / (N(context) + T), N counts, T the number of
    different characters seen after the context, p_0 uniform, and p_{k-1} where the context was never seen (Witten and
    Bell, IEEE Transactions on Information Theory 1991, interpolated as in Chen and Goodman, 1999). Texts are numbers of
    characters (character,), int64. The first characters of the test text have what stands before them.
    """
    most = math.floor(62 / math.log2(num_symbols))
    if not 1 <= order <= most:
        raise ValueError(f"`order` (={order}) must be from 1 to {most} for a text with {num_symbols} characters.")
    probability = torch.full(test.shape, 1 / num_symbols, dtype=torch.float64)
    for length in range(1, order + 1):
        seen, asked = (_grams(text, length, num_symbols) for text in (train, test))
        kinds, counts = seen.unique(return_counts=True)
        # Sorted, because the runs are: the last character is the fastest.
        contexts, group, different = torch.unique_consecutive(
            kinds // num_symbols, return_inverse=True, return_counts=True
        )
        totals = torch.zeros_like(contexts).index_add_(0, group, counts)
        count = _looked_up(kinds, counts, asked)
        total, kept = (_looked_up(contexts, table, asked // num_symbols) for table in (totals, different))
        later = probability[length - 1 :]
        probability[length - 1 :] = torch.where(total > 0, (count + kept * later) / (total + kept).clamp(min=1), later)
    return float(-probability.log2().mean())


def _grams(text: Tensor, length: int, num_symbols: int) -> Tensor:
    """The number of each run of `length` characters, the last one fastest."""
    number = torch.zeros(len(text) - length + 1, dtype=torch.int64)
    for place in range(length):
        number = number * num_symbols + text[place : place + len(number)]
    return number


def _looked_up(keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
    """The value of each key that is asked for, float64, 0 where there is none; keys are sorted."""
    place = torch.searchsorted(keys, asked).clamp(max=len(keys) - 1)
    return torch.where(keys[place] == asked, values[place], 0).double()
