"""Flat programs: what a family computes from its params alone, on tensors as rows of numbers, the last axis fastest.

Element-wise maps are those of tiles; everything that moves elements about (views, broadcasts, sums, products of
matrices) is a gather or a scatter with a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightspace.rollout.native.trace.program import Builder, Map, Ref

Table = tuple[int, ...]


@dataclass(frozen=True)
class Gather:
    """out[i] = source[table[i]]."""

    out: Ref
    source: Ref
    table: Table


@dataclass(frozen=True)
class Scatter:
    """out[table[i]] = the sum of all source[i] that go there, 0 where none does."""

    out: Ref
    source: Ref
    table: Table


@dataclass(frozen=True)
class Load:
    """out[i] = numbers[i]."""

    out: Ref
    numbers: tuple[float, ...]


Step = Map | Gather | Scatter | Load


@dataclass(frozen=True)
class Prologue:
    """Operations from params to further tensors of a program; `rows` of a value are its elements here."""

    params: Mapping[int, Ref]
    """Number of a stored tensor -> its value, for tensors that are read."""
    results: tuple[Ref, ...]
    operations: tuple[Step, ...]
    builder: Builder
