"""The graph of a recurrent model: one node per unit, one edge per declared connection, in dense and in PyG form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data

from weightspace.declaration import NODE_KINDS, NONLINEARITIES, ROW_ROLES, SLOTS
from weightspace.rows import channel_of, row_specs, rows, unfolded
from weightspace.spec import WeightSpec

CHANNELS = SLOTS * len(ROW_ROLES)
"""Most channels that an edge or a node has: every role in slot 0, then every role in slot 1."""

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
    """The part of a graph with `node` nodes that follows from the declaration, the same for every model of a stack.

    Nodes are the node axes of the spec one after another, then product nodes: one for each pair of units of the two
    axes that a tensor with three node axes reads, under the name FROM*FROM. Connections of weight 1 join both units to
    it and the tensor's entries join it to their targets, so that permuting units permutes nodes.
    Entry [i, j] of an edge field is the edge j -> i. Channels are the roles of rows in slot 0 and, if any tensor needs
    it, those in slot 1.
    """

    offsets: Mapping[str, slice]
    kind: Tensor
    """(node,) index into `NODE_KINDS`."""
    layer: Tensor
    """(node,) layer of hidden nodes, else 0."""
    nonlinearity: Tensor
    """(node,) index into `NONLINEARITIES`."""
    position: Tensor
    """(node,) index in its axis where order has a meaning (inputs, outputs), -1 where it has none."""
    node_roles: Tensor
    """(node, channel) 1 where a row of a vector is declared for the node."""
    edge_type: Tensor
    """(node, node) index into `EDGE_TYPES`, -1 where nothing is declared."""
    edge_roles: Tensor
    """(node, node, channel) 1 where a row of a tensor is declared, or a connection into a product node."""
    constant: Tensor | None
    """(node, node, channel) 1 where a connection has weight 1 in every model, None if there is no such connection."""

    def to(self, device: torch.device) -> Layout:
        """The same layout with its tensors on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return Layout(**moved)


@dataclass(frozen=True, eq=False)
class DenseGraphs:
    """The graphs of a stack: weights on edges (models, node, node, channel) and nodes (models, node, channel).

    `present` (models or 1, node, node, channel) is 1 where a connection exists: declared, and not masked out.
    """

    layout: Layout
    edges: Tensor
    nodes: Tensor
    present: Tensor


class NodeFields(NamedTuple):
    """Fields (node,) of `Layout` in its order."""

    kind: Tensor
    layer: Tensor
    nonlinearity: Tensor
    position: Tensor


class PairConnections(NamedTuple):
    """Connections of weight 1 into product nodes (pair,) from the units (pair,) that they read, of one edge type."""

    pairs: Tensor
    units: Tensor
    edge_type: int


@lru_cache(maxsize=256)
def _layout(text: str) -> Layout:
    # Cached tensors are also used where gradients are recorded, which inference tensors do not allow.
    with torch.inference_mode(False):
        return _layout_of(WeightSpec.from_json(text))


@lru_cache(maxsize=1024)
def _layout_on(text: str, device: torch.device) -> Layout:
    """The layout on a device, copied there once: a copy would end the capture of a CUDA graph."""
    with torch.inference_mode(False):
        return _layout(text).to(device)


def _layout_of(spec: WeightSpec) -> Layout:
    offsets = _offsets(spec)
    size = num_nodes(spec)
    nodes = _node_fields(spec, offsets, size)
    channels: dict[str, list[int]] = {name: [] for name in spec.tensors}
    for row in row_specs(spec):
        if row.slot >= SLOTS:
            raise ValueError(
                f"Row role '{row.role}' of '{row.tensor}' is taken: {SLOTS} rows on the same connection have it, and "
                "encoders could not tell a third one apart; give it another role."
            )
        channels[row.tensor].append(row.channel)
    used = len(ROW_ROLES) * (1 + max((row.slot for row in row_specs(spec)), default=0))
    node_roles, edge_roles = torch.zeros(size, used), torch.zeros(size, size, used)
    for name, axis in spec.vectors():
        node_roles[offsets[axis], channels[name]] = 1
    edge_type = torch.full((size, size), -1, dtype=torch.long)
    for name, (to, source) in _edges_of_tensors(spec, offsets).items():
        edge_type[to, source] = type_of_connection(spec, spec.node_axes(name))
        for channel in channels[name]:
            edge_roles[to, source, channel] = 1
    constant = torch.zeros_like(edge_roles)
    for pair, unit, edge in _connections_of_pairs(spec, offsets):
        edge_type[pair, unit] = edge
        for field in (edge_roles, constant):
            field[pair, unit, channel_of("drive", 0)] = 1
    recurrent = edge_type == EDGE_TYPES.index("recurrent")
    edge_type[recurrent & torch.eye(size, dtype=torch.bool)] = EDGE_TYPES.index("self")
    return Layout(offsets, *nodes, node_roles, edge_type, edge_roles, constant if any(spec.products()) else None)


def _offsets(spec: WeightSpec) -> dict[str, slice]:
    """Nodes of each node axis, and of each pair of axes that has product nodes."""
    sizes = {name: axis.size for name, axis in spec.axes.items() if axis.kind != "channel"}
    sizes |= {pair_name(a, b): sizes[a] * sizes[b] for _, _, (a, b) in spec.products()}
    offsets, start = {}, 0
    for name, size in sizes.items():
        offsets[name] = slice(start, start + size)
        start += size
    return offsets


def num_nodes(spec: WeightSpec) -> int:
    """Number of nodes of the graph of one model: its inputs, hidden units, outputs, factors and product nodes."""
    return max((part.stop for part in _offsets(spec).values()), default=0)


def pair_name(first: str, second: str) -> str:
    """Name of the product nodes of two axes."""
    return f"{first}*{second}"


def _node_fields(spec: WeightSpec, offsets: Mapping[str, slice], size: int) -> NodeFields:
    """The declared fields of every node; product nodes are factors."""
    kind = torch.full((size,), NODE_KINDS.index("factor"))
    nonlinearity = torch.full((size,), NONLINEARITIES.index("product"))
    layer, position = torch.zeros(size, dtype=torch.long), torch.full((size,), -1)
    for name, part in offsets.items():
        axis = spec.axes.get(name)
        if axis is not None:
            kind[part] = NODE_KINDS.index(axis.kind)
            layer[part] = axis.layer
            nonlinearity[part] = NONLINEARITIES.index(axis.nonlinearity)
            position[part] = -1 if axis.permutable else torch.arange(axis.size)
    return NodeFields(kind, layer, nonlinearity, position)


def _edges_of_tensors(spec: WeightSpec, offsets: Mapping[str, slice]) -> dict[str, tuple[Any, Any]]:
    """Tensor -> targets and sources of its edges: slices, or indices of a diagonal."""
    edges: dict[str, tuple[Any, Any]] = {n: (offsets[to], offsets[source]) for n, to, source in spec.matrices()}
    edges |= {name: (offsets[to], offsets[pair_name(*sources)]) for name, to, sources in spec.products()}
    return edges | {name: _diagonal(offsets[axis]) for name, axis in spec.vectors(diagonal=True)}


def _connections_of_pairs(spec: WeightSpec, offsets: Mapping[str, slice]) -> Iterator[PairConnections]:
    """The connections of product nodes to both units of each pair."""
    for sources in dict.fromkeys(sources for _, _, sources in spec.products()):
        part = offsets[pair_name(*sources)]
        sizes = [spec.axes[source].size for source in sources]
        units = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
        for number, source in enumerate(sources):
            edge = _TYPE_OF_KINDS.get(("factor", spec.axes[source].kind), "other")
            pairs = torch.arange(part.start, part.stop)
            yield PairConnections(pairs, offsets[source].start + units[:, number], EDGE_TYPES.index(edge))


def type_of_connection(spec: WeightSpec, nodes: tuple[str, ...]) -> int:
    """Edge type of a tensor with these node axes; one axis means a diagonal."""
    if len(nodes) == 1:
        return EDGE_TYPES.index("self")
    if len(nodes) == 2 and nodes[0] == nodes[1]:
        return EDGE_TYPES.index("recurrent")
    source = "factor" if len(nodes) == 3 else spec.axes[nodes[1]].kind
    return EDGE_TYPES.index(_TYPE_OF_KINDS.get((spec.axes[nodes[0]].kind, source), "other"))


def _diagonal(part: slice) -> tuple[Tensor, Tensor]:
    """Indices of the edges that join each node of a part to itself."""
    nodes = torch.arange(part.start, part.stop)
    return nodes, nodes


def layout(spec: WeightSpec) -> Layout:
    """The layout of a spec's graph (cached)."""
    return _layout(spec.to_json())


def dense_graphs(spec: WeightSpec, params: Mapping[str, Tensor]) -> DenseGraphs:
    """The graphs of stacked effective params (models, ...)."""
    first = next(iter(params.values()))
    declared = _layout_on(spec.to_json(), first.device)
    models, size, channels = first.shape[0], *declared.edge_roles.shape[1:]
    edges = first.new_zeros(models, size, size, channels)
    nodes = first.new_zeros(models, size, channels)
    present = declared.edge_roles[None].to(first.dtype)
    edges_of = _edges_of_tensors(spec, declared.offsets)
    if any(spec.tensors[name].mask is not None for name in edges_of):
        present = present.repeat(models, 1, 1, 1)
    for row in rows(spec, params):
        if row.tensor not in edges_of:
            nodes[:, declared.offsets[row.nodes[0]], row.channel] = row.value
            continue
        entries = (slice(None), *edges_of[row.tensor], row.channel)
        edges[entries] = unfolded(row.masked)
        if row.mask is not None:
            present[entries] = unfolded(row.mask)
    if declared.constant is not None:
        edges = edges + declared.constant.to(first.dtype)
    return DenseGraphs(declared, edges, nodes, present)


def to_data(spec: WeightSpec, params: Mapping[str, Tensor]) -> Data:
    """The graph of one model's effective params as torch_geometric Data.

    Every connection appears in both directions; an edge j -> i carries the weights of j -> i by channel and, in
    `edge_attr_reverse`, those of i -> j. `edge_index` is (2, edge) as (source, target); `x` (node, channel) holds
    biases. All models have `CHANNELS` channels, so that graphs of several families make one batch.
    """
    graphs = dense_graphs(spec, {k: v[None] for k, v in params.items()})
    declared = graphs.layout
    x, edges, present, node_roles = (
        F.pad(part, (0, CHANNELS - part.shape[-1]))
        for part in (graphs.nodes[0], graphs.edges[0], graphs.present[0], declared.node_roles)
    )
    joined = present.any(-1) | present.any(-1).T
    target, source = joined.nonzero(as_tuple=True)
    return Data(
        x=x,
        edge_index=torch.stack([source, target]),
        edge_attr=edges[target, source],
        edge_attr_reverse=edges[source, target],
        edge_present=present[target, source],
        edge_present_reverse=present[source, target],
        edge_type=declared.edge_type[target, source],
        edge_type_reverse=declared.edge_type[source, target],
        kind=declared.kind,
        node_layer=declared.layer,
        nonlinearity=declared.nonlinearity,
        position=declared.position,
        node_roles=node_roles,
        num_nodes=declared.kind.shape[0],
    )
