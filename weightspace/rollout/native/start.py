"""Whether a family's models all start from one state, so that it need not be computed for each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from weightspace.families import Family

aten = torch.ops.aten
BATCH = 7

FILLED = (aten.new_zeros.default, aten.zeros_like.default, aten.new_ones.default, aten.new_full.default)
"""What takes nothing from its arguments but their size and kind."""


def starts_alike(family: Family) -> bool:
    """Whether every model starts from the same state, whatever its params and what the task supplies."""
    params = {name: torch.ones(family.spec.shape(name)) for name in family.spec.tensors}
    names = list(params)

    def initial(start: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        return tuple(family.initial_state(dict(zip(names, flat, strict=True)), start).values())

    try:
        graph = make_fx(initial)(torch.zeros(BATCH, 0), *params.values())
    except Exception:
        return False
    moved = {node for node in graph.graph.nodes if node.op == "placeholder"}
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target not in FILLED and moved & set(node.all_input_nodes):
            moved.add(node)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    return not moved & set(output.all_input_nodes)
