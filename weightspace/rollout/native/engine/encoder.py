"""Encoder of programs as the numbers that the engine reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from weightspace.rollout.native.engine.layout import Layout
from weightspace.rollout.native.engine.records import (
    MAX_ADDENDS,
    MAX_PAIRS,
    MAX_TERMS,
    NOWHERE,
    ONE,
    OPCODES,
    SPACES,
    AddendSpec,
    Instruction,
    MatrixSpec,
    Numbers,
    PieceSpec,
    Place,
    TermSpec,
    WeightJob,
    table,
)
from weightspace.rollout.native.trace.program import (
    Addend,
    BackwardOperation,
    Map,
    Matrix,
    Product,
    Ref,
    SumInto,
    WeightGradient,
)


def _of_few_terms(operation: BackwardOperation) -> list[BackwardOperation]:
    """The operation, a product of more terms or addends than C takes as several that add to one another in place."""
    if not isinstance(operation, Product):
        return [operation]
    parts: list[BackwardOperation] = []
    out, rest = Addend(operation.out), operation
    while len(rest.terms) > MAX_TERMS or len(rest.addends) > MAX_ADDENDS:
        parts.append(dataclasses.replace(rest, terms=rest.terms[:MAX_TERMS], addends=rest.addends[:MAX_ADDENDS]))
        further = (out, *rest.addends[MAX_ADDENDS:])
        rest = dataclasses.replace(rest, terms=rest.terms[MAX_TERMS:], addends=further, bias=None)
    return [*parts, rest]


def num_instructions(operations: Iterable[BackwardOperation]) -> int:
    """Number of instructions of C that these operations become."""
    return len(_passes(operations))


def _passes(operations: Iterable[BackwardOperation]) -> list[list[BackwardOperation]]:
    """Operations by the instructions that they become: products that are added to one sum in turn are one pass.

    Two such sums of products of the same four tiles are one pass, too.
    """
    passes: list[list[BackwardOperation]] = []
    for part in (part for operation in operations for part in _of_few_terms(operation)):
        if passes and len(passes[-1]) < MAX_PAIRS and _adds_to_the_same(passes[-1][-1], part):
            passes[-1].append(part)
        else:
            passes.append([part])
    joined: list[list[BackwardOperation]] = []
    for operations in passes:
        if joined and _are_crossed(joined[-1], operations):
            joined[-1] = [*joined[-1], *operations]
        else:
            joined.append(operations)
    return joined


def _are_crossed(one: Sequence[BackwardOperation], other: Sequence[BackwardOperation]) -> bool:
    """Whether two sums are of products a b + c d and a d + c b, as for the parts of a complex number."""
    sums = [operation for operation in (*one, *other) if isinstance(operation, SumInto)]
    if not len(one) == len(other) == len(sums) // 2 == 2:
        return False
    (a, b), (c, d), *crossed = [(operation.a, operation.b) for operation in sums]
    return sums[0].vector != sums[2].vector and crossed == [(a, d), (c, b)]


def _adds_to_the_same(one: BackwardOperation, other: BackwardOperation) -> bool:
    if not isinstance(one, SumInto) or not isinstance(other, SumInto):
        return False
    return one.vector == other.vector and one.b is not None and other.b is not None


class Encoder:
    """Encoder of operations as the numbers of engine.c, with the matrices and vectors they use."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.terms: list[TermSpec] = []
        self.addends: list[AddendSpec] = []
        self.constants: list[float] = [0.0, 0.0, 1.0, 0.0]
        assert self.constants[ONE] == 1
        self.pieces: list[PieceSpec] = []
        self.matrices: dict[tuple[Matrix, bool], MatrixSpec] = {}
        self.vectors: dict[tuple[Matrix, float], MatrixSpec] = {}
        self.packed_size = self.vector_size = self.gradient_size = 0

    def instructions(self, operations: Iterable[BackwardOperation]) -> Numbers:
        """Operations as rows of numbers."""
        return table([self._instruction(*together) for together in _passes(operations)], Instruction)

    def _instruction(self, operation: BackwardOperation, *further: BackwardOperation) -> Instruction:
        if isinstance(operation, Product):
            return self._product(operation)
        if isinstance(operation, SumInto):
            return self._sum_into(operation, *(each for each in further if isinstance(each, SumInto)))
        return self._map(operation)

    def _product(self, operation: Product) -> Instruction:
        first_term, first_addend = len(self.terms), len(self.addends)
        for matrix, tile in operation.terms:
            cols = matrix.rows if operation.transposed else matrix.cols
            self.terms.append(TermSpec(self.matrix(matrix, operation.transposed), cols, self.layout.at(tile)))
        for addend in operation.addends:
            vector = -1 if addend.vector is None else self._vector_at(addend.vector, addend.scale).row
            self.addends.append(AddendSpec(self.layout.at(addend.tile), self._constants(addend.scale), vector))
        bias = NOWHERE if operation.bias is None else self._vector_at(operation.bias)
        return Instruction(
            OPCODES.index("product"),
            operation.out.rows,
            self.layout.at(operation.out),
            NOWHERE,
            bias,
            NOWHERE,
            first_term=first_term,
            num_terms=len(operation.terms),
            first_addend=first_addend,
            num_addends=len(operation.addends),
        )

    def _sum_into(self, *operations: SumInto) -> Instruction:
        vector, a = operations[0].vector, self.layout.at(operations[0].a)
        sums = Place(SPACES.index("sums"), self._summed(vector))
        if operations[0].b is None:
            return Instruction(OPCODES.index("sum_into"), vector.rows, sums, a, a, a)
        first = len(self.addends)
        for operation in operations:
            assert operation.b is not None
            self.addends.append(AddendSpec(self.layout.at(operation.a), self._constants(operation.scale), -1))
            self.addends.append(AddendSpec(self.layout.at(operation.b), ONE, -1))
        count, last = len(self.addends) - first, operations[-1].vector
        opcode = OPCODES.index("sum_product_into" if last == vector else "sum_crossed_into")
        other = Place(SPACES.index("sums"), self._summed(last))
        return Instruction(opcode, vector.rows, sums, a, other, a, first_addend=first, num_addends=count)

    def _map(self, operation: Map) -> Instruction:
        reads = [self._vector_at(arg) if isinstance(arg, Matrix) else self.layout.at(arg) for arg in operation.args]
        out = self.layout.at(operation.out)
        # Unused operands alias the output, so that every address is valid.
        a, b, c = [*reads, out, out, out][:3]
        constant = self._constants(*operation.constants) if operation.constants else 0
        return Instruction(OPCODES.index(operation.function), operation.out.rows, out, a, b, c, constant)

    def _constants(self, *numbers: float) -> int:
        """Index of one or two numbers among all constants."""
        if numbers == (1.0,):
            return ONE
        self.constants += [*numbers, 0.0][:2]
        return len(self.constants) - 2

    def matrix(self, matrix: Matrix, transposed: bool) -> int:
        """The number of a matrix, packed for products with it or with its transpose."""
        key = (matrix, transposed)
        if key not in self.matrices:
            size = matrix.rows * matrix.cols
            place = (self.packed_size, int(transposed))
            self.matrices[key] = MatrixSpec(matrix.rows, matrix.cols, *self._pieces(matrix), *place)
            self.packed_size += size
        return list(self.matrices).index(key)

    def vector(self, vector: Matrix, scale: float = 1.0) -> int:
        """The number of a vector, packed times a scale."""
        key = (vector, scale)
        if key not in self.vectors:
            place = (self.vector_size, 0)
            spec = MatrixSpec(vector.rows, 1, *self._pieces(vector), *place, scale=self._constants(scale))
            self.vectors[key] = spec
            self.vector_size += vector.rows
        return list(self.vectors).index(key)

    def _vector_at(self, vector: Matrix, scale: float = 1.0) -> Place:
        self.vector(vector, scale)
        return Place(SPACES.index("vectors"), self.vectors[vector, scale].packed)

    def _summed(self, vector: Matrix) -> int:
        """The first row of `sums` for a vector whose gradient is summed tile by tile."""
        self.vector(vector)
        key = (vector, 1.0)
        if self.vectors[key].sums < 0:
            self.vectors[key] = self.vectors[key]._replace(sums=self.layout.sizes["sums"])
            self.layout.sizes["sums"] += vector.rows
        self.vectors[key] = self._with_gradient(self.vectors[key])
        return self.vectors[key].sums

    def _with_gradient(self, spec: MatrixSpec) -> MatrixSpec:
        """Record with an address for the gradient."""
        if spec.gradient >= 0:
            return spec
        first = self.gradient_size
        self.gradient_size += spec.rows * spec.cols
        return spec._replace(gradient=first)

    def _pieces(self, matrix: Matrix) -> tuple[int, int]:
        first, row = len(self.pieces), 0
        for piece in matrix.pieces:
            strides = (piece.row_stride, piece.col_stride)
            self.pieces.append(PieceSpec(piece.tensor, piece.offset, *strides, row, piece.rows))
            row += piece.rows
        return first, len(matrix.pieces)

    def _pieces_of(self, spec: MatrixSpec) -> list[PieceSpec]:
        """The blocks of a matrix that lie in tensors; others are zeros."""
        pieces = self.pieces[spec.first_piece : spec.first_piece + spec.num_pieces]
        return [piece for piece in pieces if piece.tensor >= 0]

    def extents(self) -> dict[int, int]:
        """Numbers of each tensor of a model that are read, by the number of the tensor."""
        found: dict[int, int] = {}
        for spec in (*self.matrices.values(), *self.vectors.values()):
            for piece in self._pieces_of(spec):
                last = piece.offset + (piece.rows - 1) * piece.row_stride + (spec.cols - 1) * piece.col_stride
                found[piece.tensor] = max(found.get(piece.tensor, 0), last + 1)
        return found

    def summed_several_times(self, sizes: Sequence[int]) -> set[int]:
        """Tensors (with their numbers of elements) of which some element has several gradients in one slice."""
        touched = {number: np.zeros(size, dtype=np.int64) for number, size in enumerate(sizes)}
        for spec in (*self.matrices.values(), *self.vectors.values()):
            if spec.gradient < 0:
                continue
            for piece in self._pieces_of(spec):
                rows, cols = np.arange(piece.rows) * piece.row_stride, np.arange(spec.cols) * piece.col_stride
                np.add.at(touched[piece.tensor], np.add.outer(rows, cols) + piece.offset, 1)
        return {number for number, counts in touched.items() if (counts > 1).any()}

    def jobs(self, weights: Iterable[WeightGradient]) -> Numbers:
        """Gradients of matrices and biases as rows of numbers, those of weight dy together."""
        together: dict[Ref, list[WeightGradient]] = {}
        for weight in weights:
            together.setdefault(weight.dy, []).append(weight)
        jobs = []
        for weight in (weight for group in together.values() for weight in group):
            dy = self.layout.at(weight.dy)
            if weight.x is None:
                jobs.append(WeightJob(-1 - self.vector(weight.matrix), NOWHERE, dy, weight.silent_steps))
                key = (weight.matrix, 1.0)
                self.vectors[key] = self._with_gradient(self.vectors[key])
            else:
                x = self.layout.at(weight.x)
                jobs.append(WeightJob(self.matrix(weight.matrix, False), x, dy, weight.silent_steps))
                self.matrices[weight.matrix, False] = self._with_gradient(self.matrices[weight.matrix, False])
        return table(jobs, WeightJob)
