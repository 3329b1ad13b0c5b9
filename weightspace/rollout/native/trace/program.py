"""Programs of traced cells: lists of operations on tiles (row, lane), where a lane is one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Untraceable(ValueError):
    """Refusal of a family by the tracer; the message names the operation that programs cannot express."""


@dataclass(frozen=True)
class Ref:
    """Some rows of a value: `rows` of them from `start`."""

    value: int
    start: int
    rows: int
    stopped: bool = False
    """True after detach: neither gradients nor tangents pass."""

    @property
    def mask(self) -> int:
        """The rows, a bit each."""
        return ((1 << self.rows) - 1) << self.start

    def part(self, start: int, rows: int) -> Ref:
        """Some of these rows."""
        assert start + rows <= self.rows
        return Ref(self.value, self.start + start, rows, self.stopped)

    def stop(self) -> Ref:
        """The same rows, but no gradient or tangent passes."""
        return Ref(self.value, self.start, self.rows, stopped=True)


@dataclass(frozen=True)
class Piece:
    """Rows of a matrix or vector as they lie in one tensor of a model: element (r, k) at offset + r s_0 + k s_1."""

    tensor: int
    """Place in `Traced.tensors`; -1 for rows of zeros."""
    offset: int
    row_stride: int
    col_stride: int
    rows: int


@dataclass(frozen=True)
class Matrix:
    """A matrix (rows, cols) of params, put together from pieces; a vector is a matrix of one column."""

    cols: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(piece.rows for piece in self.pieces)

    def part(self, start: int, rows: int) -> Matrix:
        """Some of the rows."""
        kept, first = [], 0
        for piece in self.pieces:
            low, high = max(start, first), min(start + rows, first + piece.rows)
            if low < high:
                offset = piece.offset + (low - first) * piece.row_stride
                kept.append(Piece(piece.tensor, offset, piece.row_stride, piece.col_stride, high - low))
            first += piece.rows
        return Matrix(self.cols, tuple(kept))


class Term(NamedTuple):
    """A matrix times a tile in a sum."""

    matrix: Matrix
    tile: Ref


@dataclass(frozen=True)
class Addend:
    """A tile in a sum: scale * vector * tile, where the vector, if any, is of params and the same in every lane."""

    tile: Ref
    scale: float = 1.0
    vector: Matrix | None = None

    def part(self, start: int, rows: int) -> Addend:
        """Some of the rows."""
        vector = None if self.vector is None else self.vector.part(start, rows)
        return Addend(self.tile.part(start, rows), self.scale, vector)

    def times(self, number: float) -> Addend:
        """The addend scaled once more."""
        return Addend(self.tile, number * self.scale, self.vector)


@dataclass(frozen=True)
class Linear:
    """Postponed sum of products, biases and addends: it may become part of a larger sum."""

    rows: int
    terms: tuple[Term, ...] = ()
    biases: tuple[Matrix, ...] = ()
    addends: tuple[Addend, ...] = ()

    def part(self, start: int, rows: int) -> Linear:
        """Some of its rows."""
        return Linear(
            rows,
            tuple(Term(matrix.part(start, rows), tile) for matrix, tile in self.terms),
            tuple(bias.part(start, rows) for bias in self.biases),
            tuple(tile.part(start, rows) for tile in self.addends),
        )


@dataclass(frozen=True)
class Product:
    """out = bias + the sum of addends + the sum over terms of matrix (out rows, cols) times tile (cols, lane).

    Transposed, each matrix is (tile rows, out rows). Without terms it is a sum of addends, written in one pass.
    """

    out: Ref
    terms: tuple[Term, ...]
    bias: Matrix | None = None
    addends: tuple[Addend, ...] = ()
    transposed: bool = False

    @property
    def reads(self) -> tuple[Ref, ...]:
        """The tiles it reads."""
        return (*(tile for _, tile in self.terms), *(addend.tile for addend in self.addends))


@dataclass(frozen=True)
class Map:
    """out = function(args) element by element; a matrix of one column among the args is the same in every lane."""

    out: Ref
    function: str
    args: tuple[Ref | Matrix, ...] = ()
    constants: tuple[float, ...] = ()

    @property
    def reads(self) -> tuple[Ref, ...]:
        """The tiles it reads."""
        return tuple(arg for arg in self.args if isinstance(arg, Ref))


@dataclass(frozen=True)
class SumInto:
    """The gradient of `vector` grows by the sum over lanes of a, or of scale * a * b."""

    vector: Matrix
    a: Ref
    b: Ref | None = None
    scale: float = 1.0

    @property
    def reads(self) -> tuple[Ref, ...]:
        """The tiles it reads."""
        return (self.a, *([self.b] if self.b else []))


@dataclass(frozen=True)
class WeightGradient:
    """The gradient of `matrix` grows by the sum over steps and lanes of dy (row) times x (col), or 1 for a bias."""

    matrix: Matrix
    dy: Ref
    x: Ref | None
    silent_steps: int = 0
    """At so many last steps no loss depends on what dy belongs to."""


def sum_of(
    out: Ref,
    addends: tuple[Addend, ...],
    terms: tuple[Term, ...] = (),
    bias: Matrix | None = None,
    *,
    transposed: bool = False,
) -> Product | Map:
    """The operation that writes a sum: a map where one does it, else a product."""
    tiles = tuple(addend.tile for addend in addends)
    vectors = [addend.vector for addend in addends if addend.vector is not None]
    scales = tuple(addend.scale for addend in addends)
    if not terms and bias is None:
        if not addends:
            return Map(out, "zero")
        if not vectors and len(addends) == 1:
            return Map(out, "copy", tiles) if scales == (1,) else Map(out, "affine", tiles, (*scales, 0.0))
        if not vectors and scales in ((1, 1), (1, -1), (-1, 1)):
            return Map(out, "add" if scales == (1, 1) else "sub", tiles[::-1] if scales[0] < 0 else tiles)
        if len(vectors) == 1 and scales in ((1,), (1, 1)):
            scaled = tiles if addends[0].vector is not None else tiles[::-1]
            return Map(out, "mul_vector" if len(tiles) == 1 else "fma_vector", (scaled[0], vectors[0], *scaled[1:]))
    if not terms and bias is not None and scales == (1,) and not vectors:
        return Map(out, "add_vector", (*tiles, bias))
    return Product(out, terms, bias, addends, transposed)


Operation = Product | Map
BackwardOperation = Product | Map | SumInto


@dataclass(frozen=True)
class Program:
    """One time step: `step` computes the new states, `readout` the outputs from what `step` left."""

    rows: Mapping[int, int]
    """Value -> its number of rows."""
    inputs: Mapping[str, Ref]
    """Names (`x`, `noise.NAME`, `state.NAME`) -> where they are read."""
    states: Mapping[str, Ref]
    """State -> the value after the step."""
    output: Ref
    step: tuple[Operation, ...]
    readout: tuple[Operation, ...]


@dataclass
class Builder:
    """Numbering of the values of a program."""

    rows: dict[int, int] = field(default_factory=dict)

    def value(self, rows: int) -> Ref:
        """A fresh value with so many rows."""
        number = len(self.rows)
        self.rows[number] = rows
        return Ref(number, 0, rows)

    def copy(self) -> Builder:
        """Copy of the builder, which goes on from here by itself."""
        return Builder(dict(self.rows))
