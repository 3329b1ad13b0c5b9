"""Graphs of a family's step and read-out, traced by torch.fx, and refusals where such a graph would be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from weightspace.families import Family
from weightspace.rollout.native.trace.program import Untraceable
from weightspace.rollout.native.trace.watch import Watch


def captured(family: Family, dtype: torch.dtype, batch: int) -> fx.GraphModule:
    """The graph of step and read-out on `batch` sequences; its outputs are the states in order, then the outputs."""
    spec = family.spec
    params = {name: torch.ones(spec.shape(name), dtype=dtype) for name in spec.tensors}
    state = {name: torch.zeros(batch, spec.size_of_state(name), dtype=dtype) for name in spec.states}
    noise = {name: torch.zeros(batch, spec.axes[axis].size, dtype=dtype) for name, axis in spec.noise.items()}
    watch = Watch()

    def both(*flat: Tensor) -> tuple[Tensor, ...]:
        tensors = iter(flat)
        named = [{name: next(tensors) for name in part} for part in (params, state, noise)]
        with watch:
            after = family.step(named[0], named[1], next(tensors), named[2])
            if set(after) != set(spec.states):
                raise Untraceable(f"its step gives the states {sorted(after)}, but it declares {sorted(spec.states)}")
            return (*(after[name] for name in spec.states), family.readout(named[0], after))

    x = torch.zeros(batch, family.input_size, dtype=dtype)
    try:
        # One program serves calls with gradients and without.
        with torch.enable_grad():
            graph = graph_of(both, *params.values(), *state.values(), *noise.values(), x)
    except Untraceable:
        raise
    except Exception as error:
        raise Untraceable(f"its step could not be traced ({type(error).__name__}: {error})") from error
    watch.check(graph)
    for node in graph.graph.nodes:
        refuse_effects(node)
    _refuse_results(graph, [*(v.shape for v in state.values()), torch.Size((batch, family.output_size))], dtype)
    return graph


def graph_of(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> fx.GraphModule:
    """The graph of a function of tensors."""
    # One mode describes all values: torch would make one for each, which took a third of the time of a trace.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        # Without this table, later versions of torch would leave `detach` out of the graph.
        graph: fx.GraphModule = make_fx(function, decomposition_table={})(*tensors)
    return graph


def refuse_effects(node: fx.Node) -> None:
    """Raise Untraceable for an operation that writes into a tensor or draws random numbers: order would matter."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        raise Untraceable(f"{node.target} changes a tensor in place; the same without an underscore makes a new one")
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise Untraceable(f"{node.target} draws random numbers; declare them as noise of the family")


def _refuse_results(graph: fx.GraphModule, shapes: list[torch.Size], dtype: torch.dtype) -> None:
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    for node, shape in zip(output.args[0], shapes, strict=True):
        value: Any = node.meta.get("val") if isinstance(node, fx.Node) else node
        if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
            found = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise Untraceable(f"its step or read-out gives {found} where {tuple(shape)} of {dtype} is declared")
