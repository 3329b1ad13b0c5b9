"""Order of a traced list of operations: the step apart from the read-out, and equal products joined."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from weightspace.rollout.native.trace.program import (
    Builder,
    Map,
    Matrix,
    Operation,
    Piece,
    Product,
    Program,
    Ref,
    Term,
)


def arranged(
    builder: Builder, inputs: Mapping[str, Ref], states: Mapping[str, Ref], output: Ref, operations: Sequence[Operation]
) -> Program:
    """Program of these operations: the step has those that states need, the read-out those that outputs alone need."""
    alive = _needed((*states.values(), output), operations)
    step = _needed(states.values(), alive)
    in_step = {id(operation) for operation in step}
    readout = [operation for operation in alive if id(operation) not in in_step]
    outside = [*states.values(), output, *(ref for operation in readout for ref in operation.reads)]
    step, moved = _grouped(builder, fused(step, outside))
    readout = [_moved(operation, moved) for operation in readout]
    readout, also_moved = _grouped(builder, fused(readout, [_follow(output, moved)]))
    moved |= also_moved
    placed: dict[str, Ref] = {}
    for name, ref in states.items():
        target = _follow(ref, moved)
        # Each state is a value by itself, through which gradients pass.
        if target != Ref(target.value, 0, builder.rows[target.value]) or target in (*placed.values(), *inputs.values()):
            copy = builder.value(target.rows)
            step.append(Map(copy, "copy", (target,)))
            target = copy
        placed[name] = target
    return Program(builder.rows, inputs, placed, _follow(output, moved), tuple(step), tuple(readout))


def _needed(results: Iterable[Ref], operations: Sequence[Operation]) -> list[Operation]:
    """The operations, in order, on which results depend."""
    needed = {ref.value for ref in results}
    kept: list[Operation] = []
    for operation in reversed(operations):
        if operation.out.value in needed:
            needed |= {ref.value for ref in operation.reads}
            kept.insert(0, operation)
    return kept


def _grouped(builder: Builder, operations: list[Operation]) -> tuple[list[Operation], dict[int, Ref]]:
    """Products of the same tiles become one with all their rows, computed where the first of them was."""
    groups: dict[tuple[Ref, ...], list[Product]] = {}
    for operation in operations:
        if isinstance(operation, Product) and not operation.addends and not operation.transposed:
            groups.setdefault(tuple(tile for _, tile in operation.terms), []).append(operation)
    moved: dict[int, Ref] = {}
    joined: dict[int, Product] = {}
    for group in groups.values():
        if len(group) > 1:
            product = _joined(builder, group)
            joined[group[0].out.value] = product
            start = 0
            for part in (part.out for part in group):
                moved[part.value] = Ref(product.out.value, start, part.rows)
                start += part.rows
    kept: list[Operation] = []
    for operation in operations:
        if operation.out.value in joined:
            kept.append(joined[operation.out.value])
        elif operation.out.value not in moved:
            kept.append(operation)
    return [_moved(operation, moved) for operation in kept], moved


def _joined(builder: Builder, group: Sequence[Product]) -> Product:
    rows = sum(product.out.rows for product in group)
    terms = tuple(
        Term(Matrix(matrix.cols, tuple(p for product in group for p in product.terms[i].matrix.pieces)), tile)
        for i, (matrix, tile) in enumerate(group[0].terms)
    )
    bias = None
    if any(product.bias is not None for product in group):
        pieces = (product.bias.pieces if product.bias else (Piece(-1, 0, 0, 0, product.out.rows),) for product in group)
        bias = Matrix(1, tuple(piece for some in pieces for piece in some))
    return Product(builder.value(rows), terms, bias)


def _follow(ref: Ref, moved: Mapping[int, Ref]) -> Ref:
    if ref.value not in moved:
        return ref
    target = moved[ref.value].part(ref.start, ref.rows)
    return target.stop() if ref.stopped else target


def _moved(operation: Operation, moved: Mapping[int, Ref]) -> Operation:
    """The operation with its references replaced by the present ones."""
    if isinstance(operation, Product):
        terms = tuple(Term(matrix, _follow(tile, moved)) for matrix, tile in operation.terms)
        addends = tuple(dataclasses.replace(addend, tile=_follow(addend.tile, moved)) for addend in operation.addends)
        return dataclasses.replace(operation, terms=terms, addends=addends)
    assert isinstance(operation, Map)
    args = tuple(_follow(arg, moved) if isinstance(arg, Ref) else arg for arg in operation.args)
    return dataclasses.replace(operation, args=args)


def fused(operations: Sequence[Operation], outside: Iterable[Ref]) -> list[Operation]:
    """A product of two tiles that one sum reads, and nothing else here or `outside`, becomes one with the sum."""
    readers: Counter[int] = Counter(ref.value for ref in outside)
    readers.update(ref.value for operation in operations for ref in operation.reads)
    products = {op.out: op for op in operations if isinstance(op, Map) and op.function in ("mul", "mul_vector")}
    kept: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Map) and operation.function == "add":
            for one, other in (operation.args, operation.args[::-1]):
                product = products.get(one) if isinstance(one, Ref) and readers[one.value] == 1 else None
                if product is not None and product in kept:
                    kept.remove(product)
                    name = "fma" if product.function == "mul" else "fma_vector"
                    operation = Map(operation.out, name, (*product.args, other))
                    break
        kept.append(operation)
    return kept
