"""Adjoint programs, which carry gradients backward through a program, derived operation by operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from weightspace.rollout.native.derive.backward import Backward
from weightspace.rollout.native.trace.program import (
    Addend,
    BackwardOperation,
    Builder,
    Matrix,
    Program,
    Ref,
    SumInto,
    WeightGradient,
)


@dataclass
class Adjoint:
    """Gradients of one time step, from those of its results to those of the states before it."""

    readout: tuple[BackwardOperation, ...]
    """Operations from the gradient of the outputs (`output`) to those of what the read-out reads (`carry`)."""
    step: tuple[BackwardOperation, ...]
    """Operations from `carry` to the gradient of the states before the step (`next_carry`) and of the inputs."""
    first_step: tuple[BackwardOperation, ...]
    """The same at the first time step, where the gradient of the states before it may not be needed."""
    last_steps: tuple[tuple[BackwardOperation, ...], ...]
    """The same at the last time step, the one before it and so on, as far as they differ; see `silenced`."""
    output: Ref
    carry: Mapping[str, Ref]
    """Gradients of the states after the step, and of other values of it that the read-out reads (`read.VALUE`)."""
    next_carry: Mapping[str, Ref]
    """Gradients of the states before the step, which are `carry` one step earlier; zeros for all else."""
    inputs: Mapping[str, Ref]
    readout_weights: tuple[WeightGradient, ...]
    step_weights: tuple[WeightGradient, ...]
    read: frozenset[int]
    """Forward values that the adjoint reads."""
    reached: frozenset[str]
    """States on which, before a step, some loss depends."""

    @property
    def tensors(self) -> frozenset[int]:
        """Numbers of the tensors whose gradients it sums up."""
        parts = (self.step, *self.last_steps, self.readout)
        sums = [operation.vector for part in parts for operation in part if isinstance(operation, SumInto)]
        matrices = [weight.matrix for weight in (*self.readout_weights, *self.step_weights)] + sums
        return frozenset(piece.tensor for matrix in matrices for piece in matrix.pieces)


def adjoint(program: Program, builder: Builder) -> Adjoint:
    """Adjoint of one time step; new values come from the builder of the program."""
    forward = frozenset(builder.rows)
    passed = {**program.states, **_read_by_readout(program)}
    carry, next_carry = ({name: builder.value(ref.rows) for name, ref in passed.items()} for _ in range(2))
    output = builder.value(program.output.rows)
    readout, step = (Backward(builder=builder) for _ in range(2))
    readout.add(program.output, Addend(output))
    for name, ref in passed.items():
        readout.add(ref, Addend(carry[name]))
        step.add(ref, Addend(carry[name]))
    for operation in reversed(program.readout):
        readout.through(operation)
    for name, ref in passed.items():
        readout.finish(ref.value, carry[name])
    for operation in reversed(program.step):
        step.through(operation)
    inputs = {}
    for name, ref in program.inputs.items():
        if name.startswith("state."):
            step.finish(ref.value, next_carry[name.removeprefix("state.")])
        else:
            inputs[name] = builder.value(ref.rows)
            step.finish(ref.value, inputs[name])
    for name in set(passed) - set(program.states):
        step.emit("zero", out=next_carry[name])
    for part in (readout, step):
        part.refuse_lost_shares()
    return Adjoint(
        readout=tuple(readout.operations),
        step=tuple(step.operations),
        first_step=tuple(step.operations),
        last_steps=(),
        output=output,
        carry=carry,
        next_carry=next_carry,
        inputs=inputs,
        readout_weights=tuple(readout.weights),
        step_weights=tuple(step.weights),
        read=forward & (readout.read | step.read),
        reached=frozenset(program.states),
    )


def _read_by_readout(program: Program) -> dict[str, Ref]:
    """Values that the read-out reads beside states: inputs, and intermediate values of the step."""
    computed = {operation.out.value for operation in program.readout}
    computed |= {ref.value for ref in program.states.values()}
    reads = [ref for operation in program.readout for ref in operation.reads] + [program.output]
    values = sorted({ref.value for ref in reads} - computed)
    return {f"read.{value}": Ref(value, 0, program.rows[value]) for value in values}


def pruned(back: Adjoint, tensors: Collection[int], *, inputs: bool, initial: bool) -> Adjoint:
    """Adjoint reduced to the operations that gradients of some tensors, and of inputs and initial states, need."""
    readout_weights, step_weights = (
        tuple(weight for weight in weights if _wanted(weight.matrix, tensors))
        for weights in (back.readout_weights, back.step_weights)
    )
    sums = [o for o in back.step if isinstance(o, SumInto) and _wanted(o.vector, tensors)]
    needed = {ref.value for ref in back.inputs.values()} if inputs else set()
    if step_weights or sums or needed or initial:
        needed |= {ref.value for ref in back.next_carry.values()}
    needed |= {weight.dy.value for weight in (*readout_weights, *step_weights)}
    at_first = needed if initial else needed - {ref.value for ref in back.next_carry.values()}
    first_step = _alive(back.step, set(at_first), tensors)
    last_steps = tuple(_alive(operations, set(needed), tensors) for operations in back.last_steps)
    step = _alive(back.step, needed, tensors)
    first_step, step, *lasts = map(_gathered, (first_step, step, *last_steps))
    readout = _alive(back.readout, needed, tensors)
    read = {ref.value for operation in (*readout, *step) for ref in operation.reads}
    read |= {weight.x.value for weight in (*readout_weights, *step_weights) if weight.x is not None}
    return dataclasses.replace(
        back,
        readout=readout,
        step=step,
        first_step=first_step,
        last_steps=tuple(lasts),
        inputs=back.inputs if inputs else {},
        readout_weights=readout_weights,
        step_weights=step_weights,
        read=back.read & read,
    )


def _wanted(matrix: Matrix, tensors: Collection[int]) -> bool:
    return any(piece.tensor in tensors for piece in matrix.pieces)


def _alive(
    operations: Sequence[BackwardOperation], needed: set[int], tensors: Collection[int]
) -> tuple[BackwardOperation, ...]:
    """Operations that lead to needed values or sums; `needed` grows by the values they read."""
    kept: list[BackwardOperation] = []
    for operation in reversed(operations):
        is_needed = operation.out.value in needed if not isinstance(operation, SumInto) else False
        if is_needed or (isinstance(operation, SumInto) and _wanted(operation.vector, tensors)):
            kept.insert(0, operation)
            needed |= {ref.value for ref in operation.reads}
    return tuple(kept)


def _gathered(operations: Sequence[BackwardOperation]) -> tuple[BackwardOperation, ...]:
    """Operations with the sums into one vector side by side and in their order: one pass adds them up."""
    last = {operation.vector: operation for operation in operations if isinstance(operation, SumInto)}
    waiting: dict[Matrix, list[SumInto]] = {}
    kept: list[BackwardOperation] = []
    for operation in operations:
        if isinstance(operation, SumInto):
            waiting.setdefault(operation.vector, []).append(operation)
            due = [operation.vector] if operation is last[operation.vector] else []
        else:
            # Sums read a value before it is overwritten.
            due = [vector for vector, sums in waiting.items() if _read(sums, operation.out.value)]
        kept += [each for vector in due for each in waiting.pop(vector)]
        if not isinstance(operation, SumInto):
            kept.append(operation)
    return tuple(kept)


def _read(sums: Sequence[SumInto], value: int) -> bool:
    return any(ref.value == value for each in sums for ref in each.reads)
