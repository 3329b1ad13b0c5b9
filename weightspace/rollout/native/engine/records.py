"""The records that C reads, each with the fields of its struct in engine.c, in their order."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, get_type_hints

import numpy as np

OPCODES = (
    "product", "copy", "zero", "add", "sub", "mul", "div", "fma", "affine", "sigmoid", "tanh", "relu", "leaky_relu",
    "exp", "log", "sqrt", "sin", "cos", "softplus", "abs", "maximum", "minimum", "sigmoid_grad", "tanh_grad",
    "relu_grad", "leaky_relu_grad", "spike", "spike_grad", "abs_grad", "softplus_grad", "greater_grad",
    "sigmoid_grad_of_product", "tanh_grad_of_product", "add_vector", "mul_vector", "fma_vector", "sum_into",
    "sum_product_into", "sum_crossed_into", "reciprocal", "clamp_min", "clamp_min_grad", "gather", "scatter", "load",
)  # fmt: skip
"""Operations, in the order of the enum in engine.c."""
SPACES = (
    "scratch", "record", "previous", "input", "ring", "next_ring", "later_ring", "carry", "next_carry",
    "input_gradient", "vectors", "sums", "params",
)  # fmt: skip
"""Memory spaces, in the order of the enum in engine.c."""
MAX_TERMS, MAX_ADDENDS, MAX_PAIRS = 12, 4, 4
"""Largest numbers in C of terms and addends of one product, and of pairs of tiles whose products one pass adds up."""
ONE = 2
"""Index of the number 1 among the constants."""

Numbers = np.ndarray


class Place(NamedTuple):
    """A row of a space, or a number of `vectors`."""

    space: int
    row: int


NOWHERE = Place(-1, 0)


class Instruction(NamedTuple):
    """One operation; operands that it does not read are any valid place."""

    opcode: int
    rows: int
    out: Place
    a: Place
    b: Place
    c: Place
    constant: int = 0
    first_term: int = 0
    num_terms: int = 0
    first_addend: int = 0
    num_addends: int = 0


class TermSpec(NamedTuple):
    """A packed matrix times a tile."""

    matrix: int
    cols: int
    tile: Place


class AddendSpec(NamedTuple):
    """A tile times a vector in `vectors` or, where `vector` is -1, times a constant.

    In a sum of products of two tiles, the two of a product follow one another.
    """

    tile: Place
    constant: int
    vector: int


class PieceSpec(NamedTuple):
    """One block of rows of a matrix or vector, as it lies in a tensor of a model."""

    tensor: int
    offset: int
    row_stride: int
    col_stride: int
    first_row: int
    rows: int


class MatrixSpec(NamedTuple):
    """A matrix or vector, packed, and where its gradient is (-1: not wanted; `sums`: not summed tile by tile).

    A vector is multiplied by the constant number `scale` when it is packed.
    """

    rows: int
    cols: int
    first_piece: int
    num_pieces: int
    packed: int
    transposed: int
    gradient: int = -1
    sums: int = -1
    scale: int = ONE


class WeightJob(NamedTuple):
    """The gradient of matrix number `matrix`, or of bias number -1 - `matrix`, from tiles x and dy of many steps.

    The last `silent_steps` are left out.
    """

    matrix: int
    x: Place
    dy: Place
    silent_steps: int


def table(records: Iterable[tuple[Any, ...]], kind: type[tuple[Any, ...]]) -> Numbers:
    """Records as rows of numbers, as many to a row as `kind` has, also of no record."""
    rows = [_flat(record) for record in records]
    return np.array(rows, dtype=np.int64).reshape(len(rows), _width(kind))


def _flat(record: tuple[Any, ...]) -> list[int]:
    # Beside numbers there are places, which are flat themselves.
    return [number for item in record for number in (item if isinstance(item, tuple) else (item,))]


@functools.cache
def _width(kind: type[tuple[Any, ...]]) -> int:
    """Number of fields of a record of this kind."""
    return sum(2 if field is Place else 1 for field in get_type_hints(kind).values())
