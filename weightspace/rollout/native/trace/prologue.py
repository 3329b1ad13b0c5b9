"""Flat programs of traced prologues, which a family computes from its params alone."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.rollout.native.trace.flat import Prologue
from weightspace.rollout.native.trace.flat_rules import MOVES, RULES, Value, Writer
from weightspace.rollout.native.trace.program import Ref, Untraceable
from weightspace.rollout.native.trace.rules import arguments_of


def prologue_program(graph: fx.GraphModule, dtype: torch.dtype) -> Prologue:
    """The program of a traced prologue; Untraceable if one of its operations has no flat form."""
    return _Reader(graph, dtype).read()


class _Reader(Writer):
    """Reader of one graph, node after node."""

    def __init__(self, graph: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.graph = graph

    def read(self) -> Prologue:
        """Read the whole graph; for one call."""
        params: dict[int, Ref] = {}
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                shape = tuple(node.meta["val"].shape)
                number = len([known for known in self.values if known.op == "placeholder"])
                self.values[node] = Value(shape, self.builder.value(math.prod(shape)))
                if node.users:
                    params[number] = self.values[node].ref
            elif node.op == "get_attr":
                constant = getattr(self.graph, node.target)
                self.values[node] = Value(tuple(constant.shape), constant=constant)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
        (output,) = (node for node in self.graph.graph.nodes if node.op == "output")
        results = tuple(self.tile(self.values[node]) for node in output.args[0])
        return Prologue(params, results, tuple(self.operations), self.builder)

    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        if target is operator.getitem:
            source, index = node.args
            return self.values[source][index]  # type: ignore[index]
        values = [self.values[source] for source in node.all_input_nodes]
        if all(isinstance(value, Value) and value.constant is not None for value in values):
            return _known(target, fx.map_arg(node.args, self._constant), fx.map_arg(node.kwargs, self._constant))
        if target in MOVES:
            return self._moved(node)
        if target not in RULES:
            raise Untraceable(f"there is no flat operation for {target}")
        return RULES[target](self, **arguments_of(node, RULES[target], skipped=1))

    def _constant(self, node: fx.Node) -> Any:
        return self.values[node].constant

    def _moved(self, node: fx.Node) -> Any:
        """A view or another rearrangement of one tensor: found by rearranging the places of its elements."""
        value, target = self.values[node.args[0]], node.target  # type: ignore[index]
        places = torch.arange(math.prod(value.shape)).view(value.shape)
        moved = target(places, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        if isinstance(moved, Tensor):
            return self.gather(value, moved)
        return [self.gather(value, one) for one in moved]


def _known(target: Any, args: Any, kwargs: Any) -> Any:
    results = target(*args, **kwargs)
    if isinstance(results, Tensor):
        return Value(tuple(results.shape), constant=results)
    return [Value(tuple(result.shape), constant=result) for result in results]
