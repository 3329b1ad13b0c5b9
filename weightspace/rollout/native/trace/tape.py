"""Tape: the list of operations on tiles that is written while a graph is read."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.families import Family
from weightspace.rollout.native.trace.program import (
    Addend,
    Builder,
    Linear,
    Map,
    Matrix,
    Operation,
    Piece,
    Ref,
    Untraceable,
    sum_of,
)

aten = torch.ops.aten


class Tape:
    """Operations in order, the form of each node of the graph, and the tensors of params that are read."""

    def __init__(self, family: Family, graph: fx.GraphModule, dtype: torch.dtype) -> None:
        self.family, self.spec, self.graph, self.dtype = family, family.spec, graph, dtype
        spec = family.spec
        names = [f"param.{name}" for name in spec.tensors] + [f"state.{name}" for name in spec.states]
        names += [f"noise.{name}" for name in spec.noise] + ["x"]
        self.placeholders = dict(zip(names, (n for n in graph.graph.nodes if n.op == "placeholder"), strict=True))
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                # A tensor that the family holds, or makes from numbers.
                node.meta["val"] = getattr(graph, node.target)
        self.builder = Builder()
        self.operations: list[Operation] = []
        self.known: dict[fx.Node, Any] = {}
        self.placed: dict[Any, Ref] = {}
        self.from_params: list[fx.Node] = []
        self.stored: list[str] = []

    def tile(self, node: Any) -> Ref:
        """Reference to the value of a batched node, computed now if it was postponed."""
        known = self.known.get(node)
        if isinstance(known, Ref):
            return known
        if not isinstance(known, Linear):
            raise Untraceable(f"{node} is needed as a tile, but it is none")
        if known not in self.placed:
            self.placed[known] = self._compute(known)
        self.known[node] = self.placed[known]
        return self.placed[known]

    def _compute(self, linear: Linear) -> Ref:
        biases = list(linear.biases)
        if not linear.terms and len(linear.addends) == 1 and linear.addends[0] == Addend(linear.addends[0].tile):
            out = linear.addends[0].tile
        else:
            out = self.builder.value(linear.rows)
            bias = biases.pop(0) if biases else None
            self.operations.append(sum_of(out, linear.addends, linear.terms, bias))
        for bias in biases:
            out = self.emit("add_vector", (out, bias))
        return out

    def emit(self, function: str, args: Sequence[Ref | Matrix], constants: tuple[float, ...] = ()) -> Ref:
        rows = next(arg.rows for arg in args if isinstance(arg, Ref))
        out = self.builder.value(rows)
        self.operations.append(Map(out, function, tuple(args), constants))
        return out

    def map(self, node: fx.Node, function: str, args: Sequence[Ref | Matrix], constants: tuple[float, ...] = ()) -> Ref:
        if len({arg.rows for arg in args}) != 1:
            raise Untraceable(f"{node.target} joins tiles of different sizes")
        return self.emit(function, args, constants)

    def of_params(self, function: Any, node: fx.Node, **kwargs: Any) -> fx.Node:
        """A function of a node of params, computed once and not at each step."""
        with self.graph.graph.inserting_after(node):
            new = self.graph.graph.call_function(function, (node,), kwargs)
        new.meta["val"] = function(node.meta["val"], **kwargs)
        return new

    def concatenate(self, tiles: Sequence[Ref]) -> Ref:
        """Concatenation of tiles along rows, copied into one value."""
        out, start = self.builder.value(sum(tile.rows for tile in tiles)), 0
        for tile in tiles:
            self.operations.append(Map(out.part(start, tile.rows), "copy", (tile,)))
            start += tile.rows
        return out

    def linear(self, node: Any) -> Linear:
        """Postponed sum of a batched node: itself if it has no other reader, else the computed value."""
        known = self.known[node]
        if isinstance(known, Linear) and len(node.users) == 1:
            return known
        tile = self.tile(node)
        return Linear(tile.rows, addends=(Addend(tile),))

    def scaled(self, node: Any, number: float = 1.0, vector: fx.Node | None = None) -> Linear:
        """A batched node times a number or a vector of params, as a sum that may still grow."""
        known = self.linear(node)
        single = known.addends[0] if len(known.addends) == 1 and not known.terms and not known.biases else None
        if single is None or (vector is not None and single.vector is not None):
            single = Addend(self.tile(node))
        single = single.times(number)
        if vector is not None:
            single = Addend(single.tile, single.scale, self.vector(vector, single.tile.rows))
        return Linear(single.tile.rows, addends=(single,))

    def _pieces(self, node: fx.Node) -> tuple[int, Tensor]:
        """The tensor in which a node of params lies, and a view of that tensor with the node's shape."""
        if node.meta["val"].dtype != self.dtype:
            node = self.of_params(aten._to_copy.default, node, dtype=self.dtype)
        chain = _views(node)
        if chain is not None:
            name = next(name for name, holder in self.placeholders.items() if holder is chain[0])[len("param.") :]
            base = torch.empty(self.spec.shape(name), dtype=self.dtype)
            view: Any = base
            for step in chain[1:]:
                target: Any = step.target
                view = target(view, *step.args[1:], **step.kwargs)
            if view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr():
                return list(self.spec.tensors).index(name), view
        if node not in self.from_params:
            self.from_params.append(node)
        return len(self.spec.tensors) + self.from_params.index(node), torch.empty(node.meta["val"].shape)

    def matrix(self, node: fx.Node) -> Matrix:
        """A node of params (cols, rows), as it stands on the right of a product."""
        if node.meta["val"].dim() != 2:
            raise Untraceable(f"a product with a tensor of {node.meta['val'].dim()} dimensions")
        tensor, view = self._pieces(node)
        piece = Piece(tensor, int(view.storage_offset()), view.stride(1), view.stride(0), view.shape[1])
        return Matrix(view.shape[0], (piece,))

    def vector(self, node: fx.Node, rows: int) -> Matrix:
        """A node of params that broadcasts over sequences, (rows,), (1, rows) or a single number."""
        tensor, view = self._pieces(node)
        if view.dim() > 2 or view.shape[:-1] not in ((), (1,)) or view.numel() not in (1, rows):
            raise Untraceable(f"params of shape {tuple(view.shape)} beside tiles of {rows} rows")
        stride = view.stride(-1) if view.numel() == rows and view.dim() else 0
        return Matrix(1, (Piece(tensor, int(view.storage_offset()), stride, 1, rows),))


VIEWS = (
    aten.t.default, aten.view.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.unbind.int,
    aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.permute.default, aten.expand.default,
    aten._unsafe_view.default, aten.reshape.default, operator.getitem,
)  # fmt: skip


def _views(node: fx.Node) -> list[fx.Node] | None:
    """The placeholder and the views of it that lead to a node, None if anything else does."""
    chain = [node]
    while chain[0].op != "placeholder":
        if chain[0].op != "call_function" or chain[0].target not in VIEWS:
            return None
        chain.insert(0, chain[0].args[0])  # type: ignore[arg-type]
    return chain
