"""Programs that carry tangent vectors forward beside the states, derived operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from weightspace.rollout.native.program import Builder, Map, Matrix, Operation, Piece, Product, Program, Ref

Share = tuple[str, tuple[Ref | Matrix, ...], tuple[float, ...]]
"""Part of a tangent: a map of tiles."""
Tangents = list[Ref | None]


def with_tangents(program: Program, builder: Builder, num_directions: int) -> Program:
    """The program with further states `tangent.NAME`: the tangents of state NAME, direction under direction."""
    inputs, states = dict(program.inputs), dict(program.states)
    for name, ref in program.states.items():
        inputs[f"state.tangent.{name}"] = builder.value(num_directions * ref.rows)
        states[f"tangent.{name}"] = builder.value(num_directions * ref.rows)
    slopes: dict[tuple[str, Ref], Ref] = {}
    step = list(program.step)
    for direction in range(num_directions):
        seeds, places = dict[int, Ref | int](), {}
        for name, ref in program.states.items():
            rows = (direction * ref.rows, ref.rows)
            seeds[program.inputs[f"state.{name}"].value] = inputs[f"state.tangent.{name}"].part(*rows)
            places[ref.value] = states[f"tangent.{name}"].part(*rows)
        step += Forward(builder, seeds, places, slopes).through(program.step)
    return Program(builder.rows, inputs, states, next(iter(program.states.values())), tuple(step), ())


def with_jacobian(program: Program, builder: Builder) -> Program:
    """The program with the Jacobian of its step as its output: row (from, to), all states side by side."""
    size = sum(ref.rows for ref in program.states.values())
    jacobian = builder.value(size * size)
    slopes: dict[tuple[str, Ref], Ref] = {}
    readout: list[Operation] = []
    direction = 0
    for name, ref in program.states.items():
        before = program.inputs[f"state.{name}"].value
        for row in range(ref.rows):
            places, start = {}, direction * size
            for after in program.states.values():
                places[after.value] = jacobian.part(start, after.rows)
                start += after.rows
            readout += Forward(builder, {before: row}, places, slopes).through(program.step)
            direction += 1
    return Program(builder.rows, program.inputs, program.states, jacobian, program.step, tuple(readout))


@dataclass
class Forward:
    """One direction on its way through a list of operations."""

    builder: Builder
    seeds: Mapping[int, Ref | int]
    """Value -> its tangent, a tile or the row in which alone it is 1."""
    places: Mapping[int, Ref]
    """Value -> where its tangent must be written."""
    slopes: dict[tuple[str, Ref], Ref]
    """Derivatives that all directions share."""
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
                self._emit(place, "zero")
        return self.operations

    def _push(self, operation: Operation) -> None:
        out = self._to(operation.out)
        if isinstance(operation, Product):
            self._product(operation, out)
        else:
            tangents = [self.of(arg) for arg in operation.args if isinstance(arg, Ref)]
            self._sum(out, SHARES[operation.function](self, operation, tangents))

    def _to(self, ref: Ref) -> Ref:
        if ref.value not in self.tangents:
            place = self.places.get(ref.value)
            self.tangents[ref.value] = self.builder.value(self.builder.rows[ref.value]) if place is None else place
        return self.tangents[ref.value].part(ref.start, ref.rows)

    def of(self, ref: Ref) -> Ref | None:
        """The tangent of some rows of a value, None where it is 0."""
        if ref.stopped:
            return None
        seed = self.seeds.get(ref.value)
        if ref.value not in self.tangents and seed is not None:
            self.tangents[ref.value] = self._unit(ref.value, seed) if isinstance(seed, int) else seed
        return self.tangents[ref.value].part(ref.start, ref.rows) if ref.value in self.tangents else None

    def _unit(self, value: int, row: int) -> Ref:
        unit = self.builder.value(self.builder.rows[value])
        self._emit(unit, "zero")
        self._emit(unit.part(row, 1), "affine", (unit.part(row, 1),), (0.0, 1.0))
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
                terms.append((matrix, tangent))
        addend = None if operation.addend is None else self.of(operation.addend)
        bias = columns.pop() if columns else None
        if terms or bias is not None:
            self.operations.append(Product(out, tuple(terms), bias, addend))
        else:
            self._sum(out, [("copy", (addend,), ())] if addend is not None else [])
        for column in columns:
            self._emit(out, "add_vector", (out, column))

    def slope(self, function: str, tile: Ref) -> Ref:
        """A function of a tile, computed once for all directions."""
        if (function, tile) not in self.slopes:
            place = self.builder.value(tile.rows)
            self._emit(place, function, (tile,))
            self.slopes[function, tile] = place
        return self.slopes[function, tile]

    def _sum(self, out: Ref, shares: list[Share]) -> None:
        """out = the sum of shares."""
        total: Ref | None = None
        for function, args, constants in shares:
            if function == "copy":
                (tile,) = args
                assert isinstance(tile, Ref)
                total = tile if total is None else self._emit(out, "add", (total, tile))
            elif total is None:
                total = self._emit(out, function, args, constants)
            elif function in ("mul", "mul_vector"):
                total = self._emit(out, "fma" if function == "mul" else "fma_vector", (*args, total))
            else:
                more = self._emit(self.builder.value(out.rows), function, args, constants)
                total = self._emit(out, "add", (total, more))
        if total is None:
            self._emit(out, "zero")
        elif total != out:
            self._emit(out, "copy", (total,))

    def _emit(
        self, out: Ref, function: str, args: tuple[Ref | Matrix, ...] = (), constants: tuple[float, ...] = ()
    ) -> Ref:
        self.operations.append(Map(out, function, args, constants))
        return out


def _column(matrix: Matrix, column: int) -> Matrix:
    pieces = (Piece(p.tensor, p.offset + column * p.col_stride, p.row_stride, 1, p.rows) for p in matrix.pieces)
    return Matrix(1, tuple(pieces))


def _tiles(operation: Map) -> list[Ref]:
    return [arg for arg in operation.args if isinstance(arg, Ref)]


Rule = Callable[[Forward, Map, Tangents], list[Share]]


def _of_result(function: str) -> Rule:
    """Maps whose derivative is a function of their result."""
    return lambda forward, operation, tangents: [
        (function, (tangent, operation.out), operation.constants) for tangent in tangents if tangent is not None
    ]


def _of_argument(function: str) -> Rule:
    """Maps whose derivative is a function of their argument."""
    return lambda forward, operation, tangents: [
        (function, (tangent, _tiles(operation)[0]), operation.constants) for tangent in tangents if tangent is not None
    ]


def _through_function(function: str, sign: float = 1.0) -> Rule:
    """Maps whose derivative is another map of their argument."""

    def rule(forward: Forward, operation: Map, tangents: Tangents) -> list[Share]:
        if tangents[0] is None:
            return []
        slope = forward.slope(function, _tiles(operation)[0])
        share: Share = ("mul", (tangents[0], slope), ())
        return [share] if sign > 0 else [_scaled(forward, share, sign)]

    return rule


def _scaled(forward: Forward, share: Share, factor: float) -> Share:
    place = forward.builder.value(next(arg.rows for arg in share[1]))
    forward.operations.append(Map(place, *share))
    return "affine", (place,), (factor, 0.0)


def _add(forward: Forward, operation: Map, tangents: Tangents) -> list[Share]:
    return [("copy", (tangent,), ()) for tangent in tangents if tangent is not None]


def _subtract(forward: Forward, operation: Map, tangents: Tangents) -> list[Share]:
    left, right = tangents
    if left is not None and right is not None:
        return [("sub", (left, right), ())]
    return _add(forward, operation, [left]) + ([("affine", (right,), (-1.0, 0.0))] if right is not None else [])


def _multiply(forward: Forward, operation: Map, tangents: Tangents) -> list[Share]:
    left, right, *_ = _tiles(operation)
    of_left, of_right, *of_addend = tangents
    shares = _add(forward, operation, of_addend)
    shares += [("mul", (of_left, right), ())] if of_left is not None else []
    return shares + ([("mul", (of_right, left), ())] if of_right is not None else [])


def _divide(forward: Forward, operation: Map, tangents: Tangents) -> list[Share]:
    _, right = _tiles(operation)
    of_left, of_right = tangents
    shares: list[Share] = [("div", (of_left, right), ())] if of_left is not None else []
    if of_right is not None:
        share = forward.builder.value(of_right.rows)
        forward.operations.append(Map(share, "div", (of_right, right)))
        shares.append(_scaled(forward, ("mul", (share, operation.out), ()), -1.0))
    return shares


def _sqrt(forward: Forward, operation: Map, tangents: Tangents) -> list[Share]:
    return [_scaled(forward, ("div", (t, operation.out), ()), 0.5) for t in tangents if t is not None]


def _affine(forward: Forward, operation: Map, tangents: Tangents) -> list[Share]:
    return [("affine", (t,), (operation.constants[0], 0.0)) for t in tangents if t is not None]


def _larger(sign: float) -> Rule:
    def rule(forward: Forward, operation: Map, tangents: Tangents) -> list[Share]:
        left, right = _tiles(operation)
        order = (left, right) if sign > 0 else (right, left)
        pairs = zip(tangents, (order, order[::-1]), strict=True)
        return [("greater_grad", (tangent, *own), ()) for tangent, own in pairs if tangent is not None]

    return rule


def _times_vector(forward: Forward, operation: Map, tangents: Tangents) -> list[Share]:
    vector = operation.args[1]
    tangent, *of_addend = tangents
    shares = _add(forward, operation, of_addend)
    return shares + ([("mul_vector", (tangent, vector), ())] if tangent is not None else [])


SHARES: Mapping[str, Rule] = {
    "copy": _add,
    "add": _add,
    "add_vector": _add,
    "sub": _subtract,
    "mul": _multiply,
    "fma": _multiply,
    "div": _divide,
    "affine": _affine,
    "sigmoid": _of_result("sigmoid_grad"),
    "tanh": _of_result("tanh_grad"),
    "relu": _of_result("relu_grad"),
    "leaky_relu": _of_result("leaky_relu_grad"),
    "spike": _of_argument("spike_grad"),
    "exp": _of_result("mul"),
    "log": _of_argument("div"),
    "abs": _of_argument("abs_grad"),
    "sqrt": _sqrt,
    "sin": _through_function("cos"),
    "cos": _through_function("sin", -1.0),
    "softplus": _through_function("sigmoid"),
    "maximum": _larger(1.0),
    "minimum": _larger(-1.0),
    "mul_vector": _times_vector,
    "fma_vector": _times_vector,
}
"""Shares of a map's tangent, from the tangents of the tiles it reads."""
