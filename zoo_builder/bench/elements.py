"""Operations of an update beside those of matrices: element by element, of the loss, of the optimiser."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch

from weightspace.families import Family
from weightspace.rollout.native.derive.adjoint import Adjoint, adjoint, pruned
from weightspace.rollout.native.derive.prologue_adjoint import results_of
from weightspace.rollout.native.engine.encoded import traced
from weightspace.rollout.native.trace.program import BackwardOperation, Map, Product, SumInto, Untraceable
from zoo_builder.bench.case import Case, flops

MAPS = {
    **dict.fromkeys(("copy", "zero"), 0),
    **dict.fromkeys(("add", "sub", "mul", "div", "reciprocal", "sqrt", "add_vector", "mul_vector"), 1),
    **dict.fromkeys(("relu", "leaky_relu", "abs", "maximum", "minimum", "clamp_min", "spike"), 1),
    **dict.fromkeys(("relu_grad", "leaky_relu_grad", "abs_grad", "greater_grad", "clamp_min_grad"), 1),
    **dict.fromkeys(("fma", "fma_vector", "affine"), 2),
    **dict.fromkeys(("sigmoid_grad", "tanh_grad"), 3),
    **dict.fromkeys(("sigmoid_grad_of_product", "tanh_grad_of_product"), 4),
    "spike_grad": 6,
    "sigmoid": 15,
    "softplus_grad": 16,
    **dict.fromkeys(("exp", "log", "sin", "cos"), 20),
    "tanh": 23,
    "softplus": 40,
}
"""Additions, multiplications and the like for each element; a transcendental function counts its polynomial's."""
CROSS_ENTROPY = 18
"""Of one class, with its gradient: exp2 by five multiply-adds (13), maximum, difference, sum, scale, target."""
ADAMW = 17
"""Of one parameter: norm, both moments, root, quotient, decay, step."""


def operations(case: Case) -> int | None:
    """Floating-point operations of one update of one model, of any kind; None for a family without a traced program.

    Those of `flops`, and, of every family alike, as its own step and its gradient are written: so many per element as
    MAPS says for a map; for a sum one for each bias and addend, and one more where an addend is scaled by other than
    -1 or by a vector; one for each element that the gradient of a bias adds up, two for that of a factor. What is
    computed from params once per update is not counted.
    """
    family = case.load()
    try:
        per_lane = _per_lane(family)
    except Untraceable:
        return None
    sequences = case.steps * case.batch
    trained = sum(prod(family.spec.shape(name)) for name in family.spec.trained)
    return flops(case) + sequences * (per_lane + CROSS_ENTROPY * family.output_size) + ADAMW * trained


def _per_lane(family: Family) -> int:
    """Operations of one step of one sequence, forward and back."""
    program = traced(family, torch.float32)
    builder = program.builder.copy()
    tensors = frozenset(number for number, name in enumerate(program.stored) if name in family.spec.trained)
    if program.flat is not None:
        tensors |= {len(program.stored) + number for number in results_of(program.flat, tensors)}
    elif program.prologue is not None:
        tensors |= {len(program.stored) + number for number in range(len(program.computed))}
    back = pruned(adjoint(program.program, builder), tensors, inputs=False, initial=False)
    forward = (*program.program.step, *program.program.readout)
    return _counted((*forward, *back.readout, *back.step)) + _of_biases(back)


def _counted(operations: Iterable[BackwardOperation]) -> int:
    total = 0
    for operation in operations:
        if isinstance(operation, SumInto):
            total += operation.a.rows * (1 if operation.b is None else 2)
        elif isinstance(operation, Map):
            total += operation.out.rows * MAPS[operation.function]
        else:
            total += operation.out.rows * _of_sum(operation)
    return total


def _of_sum(product: Product) -> int:
    scaled = [addend for addend in product.addends if abs(addend.scale) != 1 or addend.vector is not None]
    return (product.bias is not None) + len(product.addends) + len(scaled)


def _of_biases(back: Adjoint) -> int:
    return sum(job.dy.rows for job in (*back.readout_weights, *back.step_weights) if job.x is None)
