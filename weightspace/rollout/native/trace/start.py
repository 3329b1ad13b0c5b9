"""Test of a constant initial state: one that all models of a family share is computed once."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from weightspace.families import Family
from weightspace.rollout.native.trace.capture import graph_of, refuse_effects

aten = torch.ops.aten
BATCH = 7
START_SIZES = (0, 3)
"""Numbers of columns of the task's `start`: a family may depend on them."""

FILLED = (aten.new_zeros.default, aten.zeros_like.default, aten.new_ones.default, aten.new_full.default)
"""Operations whose result depends only on the shape and dtype of their arguments."""


def starts_alike(family: Family) -> bool:
    """Whether every model starts from the same state, whatever its params and the task's `start`."""
    return all(_is_constant(family, start_size) for start_size in START_SIZES)


def _is_constant(family: Family, start_size: int) -> bool:
    params = {name: torch.ones(family.spec.shape(name)) for name in family.spec.tensors}
    names = list(params)

    def initial(start: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        return tuple(family.initial_state(dict(zip(names, flat, strict=True)), start).values())

    try:
        graph = graph_of(initial, torch.zeros(BATCH, start_size), *params.values())
        for node in graph.graph.nodes:
            refuse_effects(node)
    except Exception:
        return False
    return _reaches_no_result(graph)


def _reaches_no_result(graph: fx.GraphModule) -> bool:
    """Whether no value of an argument reaches a result."""
    moved = {node for node in graph.graph.nodes if node.op == "placeholder"}
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target not in FILLED and moved & set(node.all_input_nodes):
            moved.add(node)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    return not moved & set(output.all_input_nodes)
