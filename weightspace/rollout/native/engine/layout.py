"""Where every tile of a program lies, and the program as the numbers that the engine reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from weightspace.rollout.native.derive.adjoint import Adjoint
from weightspace.rollout.native.engine.reuse import reused
from weightspace.rollout.native.trace.program import (
    BackwardOperation,
    Map,
    Matrix,
    Product,
    Program,
    Ref,
    SumInto,
    WeightGradient,
)

# The order of these is that of the enums in engine.c.
OPCODES = (
    "product", "copy", "zero", "add", "sub", "mul", "div", "fma", "affine", "sigmoid", "tanh", "relu", "leaky_relu",
    "exp", "log", "sqrt", "sin", "cos", "softplus", "abs", "maximum", "minimum", "sigmoid_grad", "tanh_grad",
    "relu_grad", "leaky_relu_grad", "spike", "spike_grad", "abs_grad", "softplus_grad", "greater_grad",
    "sigmoid_grad_of_product", "tanh_grad_of_product", "add_vector", "mul_vector", "fma_vector", "sum_into",
    "sum_product_into", "reciprocal", "clamp_min", "clamp_min_grad", "gather", "scatter", "load",
)  # fmt: skip
SPACES = (
    "scratch", "record", "previous", "input", "ring", "carry", "next_carry", "input_gradient", "vectors", "sums",
    "params",
)  # fmt: skip
NOWHERE = (-1, 0)
MAX_TERMS = 12
"""Terms of one product in C."""

Place = tuple[str, int]
Numbers = np.ndarray


@dataclass
class Layout:
    """A program in memory: places are (space, row), sizes are rows of LANES numbers."""

    place: dict[int, Place] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPACES, 0))

    def put(self, value: int, space: str, rows: int) -> None:
        """Give a value the next free rows of a space, unless it has a place."""
        if value not in self.place:
            self.place[value] = (space, self.sizes[space])
            self.sizes[space] += rows

    def at(self, ref: Ref) -> tuple[int, int]:
        """The space and row of a reference, as numbers."""
        space, row = self.place[ref.value]
        return SPACES.index(space), row + ref.start


def laid_out(program: Program, back: Adjoint | None, rows: Mapping[int, int]) -> Layout:
    """Places for every value of a program and, if given, of the way back."""
    layout = Layout()
    for name, ref in program.states.items():
        layout.put(ref.value, "record", ref.rows)
        layout.place[program.inputs[f"state.{name}"].value] = ("previous", layout.place[ref.value][1])
    for name, ref in program.inputs.items():
        if not name.startswith("state."):
            layout.put(ref.value, "input", ref.rows)
    made = {operation.out.value for operation in program.step}
    later = {ref.value for operation in program.readout for ref in operation.reads} | {program.output.value}
    later |= back.read if back is not None else set()
    recorded = sorted(made & later)
    if back is not None:
        _put_together(layout, reused(program, back, rows, recorded), rows)
    for value in recorded:
        layout.put(value, "record", rows[value])
    if back is not None:
        _put_gradients(layout, program, back, rows)
    _put_scratch(layout, program.step, rows)
    fixed = [program.output.value]
    for value in (*fixed, *([back.output.value] if back else [])):
        layout.put(value, "scratch", rows[value])
    backward = (*back.readout, *back.step) if back is not None else ()
    _put_scratch(layout, (*program.readout, *backward), rows)
    return layout


def _put_together(layout: Layout, groups: Mapping[int, Sequence[int]], rows: Mapping[int, int]) -> None:
    """Recorded values side by side where one gradient takes the rows of them all."""
    for gradient, values in groups.items():
        for value in values:
            layout.put(value, "record", rows[value])
        layout.place[gradient] = layout.place[values[0]]


def _put_gradients(layout: Layout, program: Program, back: Adjoint, rows: Mapping[int, int]) -> None:
    for name, ref in back.carry.items():
        layout.put(ref.value, "carry", ref.rows)
        layout.place[back.next_carry[name].value] = ("next_carry", layout.place[ref.value][1])
    for name, ref in back.inputs.items():
        layout.place[ref.value] = ("input_gradient", layout.place[program.inputs[name].value][1])
    for one in (*back.readout_weights, *back.step_weights):
        # Gradients of weights are taken for many steps at once, so both sides must last.
        for ref in (one.dy, *([one.x] if one.x else [])):
            layout.put(ref.value, "ring", rows[ref.value])


def _put_scratch(layout: Layout, operations: Sequence[BackwardOperation], rows: Mapping[int, int]) -> None:
    """Places for what has none yet; one place serves values that are not needed at the same time."""
    last: dict[int, int] = {}
    for number, operation in enumerate(operations):
        written = [] if isinstance(operation, SumInto) else [operation.out]
        for ref in (*operation.reads, *written):
            last[ref.value] = number
    first_free, busy, free = layout.sizes["scratch"], dict[int, Place](), list[tuple[int, int]]()
    end = first_free
    for number, operation in enumerate(operations):
        if not isinstance(operation, SumInto) and operation.out.value not in layout.place:
            value, size = operation.out.value, rows[operation.out.value]
            fitting = sorted((room, row) for row, room in free if room >= size)
            if fitting:
                room, row = fitting[0]
                free.remove((row, room))
                if room > size:
                    free.append((row + size, room - size))
            else:
                row, end = end, end + size
            layout.place[value] = busy[value] = ("scratch", row)
        for value in [value for value in busy if last[value] == number]:
            free.append((busy.pop(value)[1], rows[value]))
    layout.sizes["scratch"] = max(end, layout.sizes["scratch"])


def _of_few_terms(operation: BackwardOperation) -> list[BackwardOperation]:
    """The operation, a product of more than MAX_TERMS terms as several that add to one another in place."""
    if not isinstance(operation, Product) or len(operation.terms) <= MAX_TERMS:
        return [operation]
    parts: list[BackwardOperation] = [dataclasses.replace(operation, terms=operation.terms[:MAX_TERMS])]
    for first in range(MAX_TERMS, len(operation.terms), MAX_TERMS):
        terms = operation.terms[first : first + MAX_TERMS]
        parts.append(Product(operation.out, terms, addend=operation.out, transposed=operation.transposed))
    return parts


def num_instructions(operations: Iterable[BackwardOperation]) -> int:
    """How many instructions of C these operations become."""
    return sum(len(_of_few_terms(operation)) for operation in operations)


class Encoder:
    """Writes operations as the numbers of engine.c, collecting the matrices and vectors they use."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.terms: list[tuple[int, ...]] = []
        self.constants: list[float] = [0.0, 0.0]
        self.pieces: list[tuple[int, ...]] = []
        self.matrices: dict[tuple[Matrix, bool], list[int]] = {}
        self.vectors: dict[Matrix, list[int]] = {}
        self.packed_size = self.vector_size = self.gradient_size = 0

    def instructions(self, operations: Iterable[BackwardOperation]) -> Numbers:
        """Operations as rows of numbers."""
        rows = [self._instruction(part) for operation in operations for part in _of_few_terms(operation)]
        return np.array(rows, dtype=np.int64).reshape(len(rows), 13)

    def _instruction(self, operation: BackwardOperation) -> tuple[int, ...]:
        at = self.layout.at
        if isinstance(operation, Product):
            first = len(self.terms)
            for matrix, tile in operation.terms:
                cols = matrix.rows if operation.transposed else matrix.cols
                self.terms.append((self.matrix(matrix, operation.transposed), cols, *at(tile)))
            bias = NOWHERE if operation.bias is None else self._vector_at(operation.bias)
            addend = NOWHERE if operation.addend is None else at(operation.addend)
            places = (*at(operation.out), *NOWHERE, *bias, *addend)
            return (OPCODES.index("product"), operation.out.rows, *places, 0, first, len(operation.terms))
        if isinstance(operation, SumInto):
            sums = (SPACES.index("sums"), self._summed(operation.vector))
            name = "sum_into" if operation.b is None else "sum_product_into"
            b = at(operation.a) if operation.b is None else at(operation.b)
            return (OPCODES.index(name), operation.a.rows, *sums, *at(operation.a), *b, *at(operation.a), 0, 0, 0)
        return self._map(operation)

    def _map(self, operation: Map) -> tuple[int, ...]:
        places = [self._vector_at(arg) if isinstance(arg, Matrix) else self.layout.at(arg) for arg in operation.args]
        # What is not read points at the result, so that every place is one.
        places += [self.layout.at(operation.out)] * (3 - len(places))
        constant = 0
        if operation.constants:
            constant = len(self.constants)
            self.constants += [*operation.constants, 0.0][:2]
        flat = [number for place in (self.layout.at(operation.out), *places) for number in place]
        return (OPCODES.index(operation.function), operation.out.rows, *flat, constant, 0, 0)

    def matrix(self, matrix: Matrix, transposed: bool) -> int:
        """The number of a matrix, packed for products with it or with its transpose."""
        key = (matrix, transposed)
        if key not in self.matrices:
            size = matrix.rows * matrix.cols
            self.matrices[key] = [
                matrix.rows,
                matrix.cols,
                *self._pieces(matrix),
                self.packed_size,
                int(transposed),
                -1,
                -1,
            ]
            self.packed_size += size
        return list(self.matrices).index(key)

    def vector(self, vector: Matrix) -> int:
        """The number of a vector."""
        if vector not in self.vectors:
            self.vectors[vector] = [vector.rows, 1, *self._pieces(vector), self.vector_size, 0, -1, -1]
            self.vector_size += vector.rows
        return list(self.vectors).index(vector)

    def _vector_at(self, vector: Matrix) -> tuple[int, int]:
        self.vector(vector)
        return SPACES.index("vectors"), self.vectors[vector][4]

    def _summed(self, vector: Matrix) -> int:
        self.vector(vector)
        own = self.vectors[vector]
        if own[7] < 0:
            own[7] = self.layout.sizes["sums"]
            self.layout.sizes["sums"] += vector.rows
        self._wanted(own)
        return own[7]

    def _wanted(self, own: list[int]) -> None:
        if own[6] < 0:
            own[6] = self.gradient_size
            self.gradient_size += own[0] * own[1]

    def _pieces(self, matrix: Matrix) -> tuple[int, int]:
        first, row = len(self.pieces), 0
        for piece in matrix.pieces:
            strides = (piece.row_stride, piece.col_stride)
            self.pieces.append((piece.tensor, piece.offset, *strides, row, piece.rows))
            row += piece.rows
        return first, len(matrix.pieces)

    def extents(self) -> dict[int, int]:
        """How many numbers of each tensor of a model are reached, by the number of the tensor."""
        found: dict[int, int] = {}
        for own in (*self.matrices.values(), *self.vectors.values()):
            for tensor, offset, row_stride, col_stride, _, rows in self.pieces[own[2] : own[2] + own[3]]:
                last = offset + (rows - 1) * row_stride + (own[1] - 1) * col_stride
                if tensor >= 0:
                    found[tensor] = max(found.get(tensor, 0), last + 1)
        return found

    def jobs(self, weights: Iterable[WeightGradient]) -> Numbers:
        """What is done for gradients of matrices and biases, as rows of numbers, those of one dy together."""
        together: dict[Ref, list[WeightGradient]] = {}
        for one in weights:
            together.setdefault(one.dy, []).append(one)
        rows = []
        for one in (one for own in together.values() for one in own):
            if one.x is None:
                number = -1 - self.vector(one.matrix)
                self._wanted(self.vectors[one.matrix])
                rows.append((number, *NOWHERE, *self.layout.at(one.dy)))
            else:
                number = self.matrix(one.matrix, False)
                self._wanted(self.matrices[one.matrix, False])
                rows.append((number, *self.layout.at(one.x), *self.layout.at(one.dy)))
        return np.array(rows, dtype=np.int64).reshape(len(rows), 5)
