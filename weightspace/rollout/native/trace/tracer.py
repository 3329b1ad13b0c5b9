"""Tracer: operations on tiles from the graph of a family's step and read-out."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.rollout.native.trace.grouping import arranged
from weightspace.rollout.native.trace.program import (
    Program,
    Ref,
    Untraceable,
)
from weightspace.rollout.native.trace.rules import translated
from weightspace.rollout.native.trace.tape import Tape

aten = torch.ops.aten


class Tracer(Tape):
    """Reader of one graph: nodes of params alone go to the prologue, all others become operations on tiles."""

    def read(self) -> tuple[Program, fx.GraphModule | None]:
        """Program and the graph of its prologue; for one call."""
        inputs = self._inputs()
        for node in self.graph.graph.nodes:
            if node.op == "call_function" and self._is_batched(node):
                self.known[node] = self._read(node)
        (output,) = (node for node in self.graph.graph.nodes if node.op == "output")
        results = [self.tile(node) for node in output.args[0]]
        states = dict(zip(self.spec.states, results[:-1], strict=True))
        program = arranged(self.builder, inputs, states, results[-1], self.operations)
        return program, self._prologue()

    def _inputs(self) -> dict[str, Ref]:
        inputs = {}
        for name, node in self.placeholders.items():
            if not name.startswith("param."):
                inputs[name] = self.known[node] = self.builder.value(node.meta["val"].shape[1])
        return inputs

    def _is_batched(self, node: fx.Node) -> bool:
        return any(arg in self.known for arg in node.all_input_nodes)

    def _read(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, index = node.args
            return self.known[source][index]  # type: ignore[index]
        for value in _flat([node.meta.get("val")]):
            if not isinstance(value, Tensor) or value.dim() != 2 or value.dtype != self.dtype or not value.numel():
                raise Untraceable(f"{node.target} gives {_kind(value)} where a tile of {self.dtype} is expected")
        return translated(self, node)

    def _prologue(self) -> fx.GraphModule | None:
        if not self.from_params:
            return None
        made, copies = fx.Graph(), {}
        for name, node in self.placeholders.items():
            if name.startswith("param."):
                copies[node] = made.placeholder(name.replace(".", "_"))
                copies[node].meta = dict(node.meta)
        for node in self.graph.graph.nodes:
            if node.op in ("call_function", "get_attr") and not self._is_batched(node):
                copies[node] = made.node_copy(node, lambda old: copies[old])
        made.output(tuple(copies[node] for node in self.from_params))
        made.eliminate_dead_code()
        return fx.GraphModule(self.graph, made)


def _kind(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)


def _flat(args: Any) -> list[Any]:
    return [item for arg in args for item in (_flat(arg) if isinstance(arg, list | tuple) else [arg])]
