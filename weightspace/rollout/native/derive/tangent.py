"""Programs that carry tangent vectors forward beside the states, derived operation by operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from weightspace.rollout.native.derive.derivatives import PARTIALS, Derivation, Slope
from weightspace.rollout.native.trace.program import Builder, Matrix, Operation, Piece, Product, Program, Ref, Term


def with_tangents(program: Program, builder: Builder, num_directions: int) -> Program:
    """The program with further states `tangent.NAME`: the tangents of state NAME, direction under direction."""
    inputs, states = dict(program.inputs), dict(program.states)
    for name, ref in program.states.items():
        inputs[f"state.tangent.{name}"] = builder.value(num_directions * ref.rows)
        states[f"tangent.{name}"] = builder.value(num_directions * ref.rows)
    slopes: dict[Slope, Ref] = {}
    step = list(program.step)
    for direction in range(num_directions):
        seeds, places = dict[int, Ref | int](), {}
        for name, ref in program.states.items():
            rows = (direction * ref.rows, ref.rows)
            seeds[program.inputs[f"state.{name}"].value] = inputs[f"state.tangent.{name}"].part(*rows)
            places[ref.value] = states[f"tangent.{name}"].part(*rows)
        step += Forward(builder=builder, seeds=seeds, places=places, slopes=slopes).through(program.step)
    return Program(builder.rows, inputs, states, next(iter(program.states.values())), tuple(step), ())


def with_jacobian(program: Program, builder: Builder) -> Program:
    """The program with the Jacobian of its step as its output: row (from, to), all states side by side."""
    size = sum(ref.rows for ref in program.states.values())
    jacobian = builder.value(size * size)
    slopes: dict[Slope, Ref] = {}
    readout: list[Operation] = []
    direction = 0
    for name, ref in program.states.items():
        before = program.inputs[f"state.{name}"].value
        for row in range(ref.rows):
            places, start = {}, direction * size
            for after in program.states.values():
                places[after.value] = jacobian.part(start, after.rows)
                start += after.rows
            readout += Forward(builder=builder, seeds={before: row}, places=places, slopes=slopes).through(program.step)
            direction += 1
    return Program(builder.rows, program.inputs, program.states, jacobian, program.step, tuple(readout))


@dataclass(kw_only=True)
class Forward(Derivation):
    """Tangents of one direction through a list of operations; slopes are shared by all directions."""

    seeds: Mapping[int, Ref | int]
    """Value -> its tangent: a tile, or the number of the one row that is 1."""
    places: Mapping[int, Ref]
    """Value -> the reference to which its tangent must be written."""
    operations: list[Operation] = field(default_factory=list)
    tangents: dict[int, Ref] = field(default_factory=dict)

    def through(self, operations: tuple[Operation, ...]) -> list[Operation]:
        """The operations that compute the tangents."""
        active = set(self.seeds)
        for operation in operations:
            if any(ref.value in active and not ref.stopped for ref in operation.reads):
                active.add(operation.out.value)
        for operation in operations:
            if operation.out.value in active:
                self._push(operation)
        for value, place in self.places.items():
            if value not in active:
                self.emit("zero", out=place)
        return self.operations

    def _push(self, operation: Operation) -> None:
        out = self._to(operation.out)
        if isinstance(operation, Product):
            self._product(operation, out)
        else:
            pairs = zip(operation.args, PARTIALS[operation.function], strict=True)
            moved = [(self.of(arg), partial) for arg, partial in pairs if isinstance(arg, Ref)]
            self.write(out, [partial(self, operation, tangent) for tangent, partial in moved if tangent is not None])

    def _to(self, ref: Ref) -> Ref:
        if ref.value not in self.tangents:
            place = self.places.get(ref.value)
            self.tangents[ref.value] = self.builder.value(self.builder.rows[ref.value]) if place is None else place
        return self.tangents[ref.value].part(ref.start, ref.rows)

    def of(self, ref: Ref) -> Ref | None:
        """Tangent of some rows of a value, None where it is 0."""
        if ref.stopped:
            return None
        seed = self.seeds.get(ref.value)
        if ref.value not in self.tangents and seed is not None:
            self.tangents[ref.value] = self._unit(ref.value, seed) if isinstance(seed, int) else seed
        return self.tangents[ref.value].part(ref.start, ref.rows) if ref.value in self.tangents else None

    def _unit(self, value: int, row: int) -> Ref:
        unit = self.builder.value(self.builder.rows[value])
        self.emit("zero", out=unit)
        self.emit("affine", (unit.part(row, 1),), (0.0, 1.0), unit.part(row, 1))
        return unit

    def _product(self, operation: Product, out: Ref) -> None:
        """The product of the tangents; of a matrix with a unit vector, one of its columns is left, as a bias."""
        terms, columns = [], []
        for matrix, tile in operation.terms:
            seed = self.seeds.get(tile.value)
            if isinstance(seed, int) and not tile.stopped:
                if tile.start <= seed < tile.start + tile.rows:
                    columns.append(_column(matrix, seed - tile.start))
            elif (tangent := self.of(tile)) is not None:
                terms.append(Term(matrix, tangent))
        pairs = [(addend, self.of(addend.tile)) for addend in operation.addends]
        addends = [dataclasses.replace(addend, tile=tile) for addend, tile in pairs if tile is not None]
        self.write(out, addends, tuple(terms), columns.pop() if columns else None)
        for column in columns:
            self.emit("add_vector", (out, column), out=out)


def _column(matrix: Matrix, column: int) -> Matrix:
    pieces = (Piece(p.tensor, p.offset + column * p.col_stride, p.row_stride, 1, p.rows) for p in matrix.pieces)
    return Matrix(1, tuple(pieces))
