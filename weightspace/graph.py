"""The graph of a recurrent model: one node per unit, one edge per declared connection, in dense and in PyG form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from weightspace.spec import NODE_KINDS, NONLINEARITIES, ROW_ROLES, WeightSpec

EDGE_TYPES = (
    "recurrent",
    "self",
    "input",
    "output",
    "layer",
    "factor_state",
    "factor_input",
    "factor_out",
    "skip",
    "other",
)
_TYPE_OF_KINDS = {
    ("hidden", "input"): "input",
    ("output", "hidden"): "output",
    ("hidden", "hidden"): "layer",
    ("factor", "hidden"): "factor_state",
    ("factor", "input"): "factor_input",
    ("hidden", "factor"): "factor_out",
    ("output", "input"): "skip",
}


@dataclass(frozen=True, eq=False)
class Layout:
    """What the declaration alone says of a graph with `node` nodes: the same for every model of a stack.

    Nodes are the node axes of the spec one after another; entry [i, j] of an edge field is the edge j -> i.
    """

    offsets: Mapping[str, slice]
    kind: Tensor
    """(node,) index into `NODE_KINDS`."""
    layer: Tensor
    """(node,) layer of hidden nodes, else 0."""
    nonlinearity: Tensor
    """(node,) index into `NONLINEARITIES`."""
    position: Tensor
    """(node,) place in its axis where order has a meaning (inputs, outputs), -1 where it has none."""
    node_roles: Tensor
    """(node, role) 1 where a vector with that role lives on the node."""
    edge_type: Tensor
    """(node, node) index into `EDGE_TYPES`, -1 where nothing is declared."""
    edge_roles: Tensor
    """(node, node, role) 1 where a matrix row with that role is declared."""

    def to(self, device: torch.device) -> Layout:
        """The same layout with its tensors on a device."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "offsets"}
        return Layout(self.offsets, **tensors)


@dataclass(frozen=True, eq=False)
class DenseGraphs:
    """The graphs of a stack: weights by role on edges (models, node, node, role) and nodes (models, node, role).

    `present` (models or 1, node, node, role) is 1 where a connection exists: declared, and not masked out.
    """

    layout: Layout
    edges: Tensor
    nodes: Tensor
    present: Tensor


@lru_cache(maxsize=256)
def _layout(text: str) -> Layout:
    # Kept for calls that record gradients, too, whatever the mode of the first one is.
    with torch.inference_mode(False):
        return _made_layout(WeightSpec.from_json(text))


def _made_layout(spec: WeightSpec) -> Layout:
    offsets, start = {}, 0
    for name, axis in spec.axes.items():
        if axis.kind != "channel":
            offsets[name] = slice(start, start + axis.size)
            start += axis.size
    axes = [(spec.axes[name], part) for name, part in offsets.items()]
    kind, layer, nonlinearity, position = (torch.zeros(start, dtype=torch.long) for _ in range(4))
    for axis, part in axes:
        kind[part] = NODE_KINDS.index(axis.kind)
        layer[part] = axis.layer
        nonlinearity[part] = NONLINEARITIES.index(axis.nonlinearity)
        position[part] = -1 if axis.permutable else torch.arange(axis.size)
    node_roles = torch.zeros(start, len(ROW_ROLES))
    for name, axis_name in spec.vectors():
        for role in spec.tensors[name].row_roles:
            _claim(node_roles, (offsets[axis_name], ROW_ROLES.index(role)), name, role)
    edge_type = torch.full((start, start), -1, dtype=torch.long)
    edge_roles = torch.zeros(start, start, len(ROW_ROLES))
    for name, to, source in spec.matrices():
        edge_type[offsets[to], offsets[source]] = _edge_type(spec, to, source)
        for role in spec.tensors[name].row_roles:
            _claim(edge_roles, (offsets[to], offsets[source], ROW_ROLES.index(role)), name, role)
    for name, axis_name in spec.vectors(diagonal=True):
        joined = _diagonal(offsets[axis_name])
        edge_type[joined] = EDGE_TYPES.index("self")
        for role in spec.tensors[name].row_roles:
            _claim(edge_roles, (*joined, ROW_ROLES.index(role)), name, role)
    recurrent = edge_type == EDGE_TYPES.index("recurrent")
    edge_type[recurrent & torch.eye(start, dtype=torch.bool)] = EDGE_TYPES.index("self")
    return Layout(offsets, kind, layer, nonlinearity, position, node_roles, edge_type, edge_roles)


def _edge_type(spec: WeightSpec, to: str, source: str) -> int:
    if to == source:
        return EDGE_TYPES.index("recurrent")
    return EDGE_TYPES.index(_TYPE_OF_KINDS.get((spec.axes[to].kind, spec.axes[source].kind), "other"))


def _diagonal(part: slice) -> tuple[Tensor, Tensor]:
    """Indices of the edges that join each node of a part to itself."""
    nodes = torch.arange(part.start, part.stop)
    return nodes, nodes


def _claim(field: Tensor, where: tuple[slice | int | Tensor, ...], name: str, role: str) -> None:
    """Mark a channel as taken; two rows in one channel could not be told apart by an encoder."""
    if field[where].any():
        raise ValueError(f"Row role '{role}' of '{name}' is taken on the same connection; give each row its own role.")
    field[where] = 1


def layout(spec: WeightSpec) -> Layout:
    """The layout of a spec's graph (cached)."""
    return _layout(spec.to_json())


def dense_graphs(spec: WeightSpec, params: Mapping[str, Tensor]) -> DenseGraphs:
    """The graphs of stacked effective params (models, ...)."""
    first = next(iter(params.values()))
    where = layout(spec).to(first.device)
    models, size = first.shape[0], where.kind.shape[0]
    edges = first.new_zeros(models, size, size, len(ROW_ROLES))
    nodes = first.new_zeros(models, size, len(ROW_ROLES))
    present = where.edge_roles[None].to(first.dtype)
    places: dict[str, tuple[Any, Any]] = {n: (where.offsets[to], where.offsets[by]) for n, to, by in spec.matrices()}
    places |= {name: _diagonal(where.offsets[axis]) for name, axis in spec.vectors(diagonal=True)}
    if any(spec.tensors[name].mask is not None for name in places):
        present = present.repeat(models, 1, 1, 1)
    for name, (to, source) in places.items():
        for role, value, mask in _rows(spec, params, name):
            place = (slice(None), to, source, role)
            edges[place] = value if mask is None else value * mask
            if mask is not None:
                present[place] = mask
    for name, axis in spec.vectors():
        for role, value, _ in _rows(spec, params, name):
            nodes[:, where.offsets[axis], role] = value
    return DenseGraphs(where, edges, nodes, present)


def _rows(spec: WeightSpec, params: Mapping[str, Tensor], name: str) -> list[tuple[int, Tensor, Tensor | None]]:
    """(role, values (models, ...), mask or None) of each channel row of one tensor."""
    roles = [ROW_ROLES.index(role) for role in spec.tensors[name].row_roles]
    mask_name = spec.tensors[name].mask
    mask = None if mask_name is None else params[mask_name]
    if spec.channel_axis(name) is None:
        return [(roles[0], params[name], mask)]
    return [(r, params[name][:, i], None if mask is None else mask[:, i]) for i, r in enumerate(roles)]


def to_data(spec: WeightSpec, params: Mapping[str, Tensor]) -> Data:
    """The graph of one model's effective params as torch_geometric Data.

    Every connection appears in both directions; an edge j -> i carries the weights of j -> i by role and, in
    `edge_attr_reverse`, those of i -> j. `edge_index` is (2, edge) as (source, target); `x` (node, role) holds biases.
    """
    graphs = dense_graphs(spec, {k: v[None] for k, v in params.items()})
    where, present = graphs.layout, graphs.present[0]
    joined = present.any(-1) | present.any(-1).T
    target, source = joined.nonzero(as_tuple=True)
    return Data(
        x=graphs.nodes[0],
        edge_index=torch.stack([source, target]),
        edge_attr=graphs.edges[0][target, source],
        edge_attr_reverse=graphs.edges[0][source, target],
        edge_present=present[target, source],
        edge_present_reverse=present[source, target],
        edge_type=where.edge_type[target, source],
        edge_type_reverse=where.edge_type[source, target],
        kind=where.kind,
        node_layer=where.layer,
        nonlinearity=where.nonlinearity,
        position=where.position,
        node_roles=where.node_roles,
        num_nodes=where.kind.shape[0],
    )
