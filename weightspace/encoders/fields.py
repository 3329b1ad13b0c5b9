"""Weights of a stack as fields on its node sets: one tensor per pair of sets, none for pairs that nothing joins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from weightspace.declaration import NODE_KINDS, NONLINEARITIES
from weightspace.graph import type_of_connection
from weightspace.rows import Row, rows
from weightspace.spec import WeightSpec

Pair = tuple[str, str]
CACHED = {"cpu": 2**18, "cuda": 2**26}
"""Numbers of one field that are read at once, by device: 1 MB, so that the few fields of a layer stay in a cache of 2
MB or so; on CUDA 256 MB, enough to keep all of a GPU busy."""
MIN_CHUNK = 4
"""Fewest models that are read at once: below, the calls cost more than the numbers."""


@dataclass(frozen=True, kw_only=True)
class NodeSet:
    """One node axis of a declaration, its words as indices into `NODE_KINDS` and `NONLINEARITIES`."""

    size: int
    kind: int
    layer: int
    nonlinearity: int
    ordered: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """Channel rows that lie on the same node axes: values (models, ..., row), 0 where masked out."""

    values: Tensor
    channels: Tensor
    """(row,) channel of each row: its role and slot."""
    present: Tensor | None
    """(models, ..., row) 1 where an entry exists, None where all do."""

    def of(self, models: slice) -> Values:
        """The values of some of the models."""
        return replace(self, values=self.values[models], present=None if self.present is None else self.present[models])


@dataclass(frozen=True, kw_only=True, eq=False)
class Fields:
    """The weight space of a stack, by node axes.

    `edges[to, from]` (models, to, from, row) are matrices, `triples[to, from, from]` weights of products, `nodes[axis]`
    vectors and `loops[axis]` diagonals. `types` has the index into `EDGE_TYPES` of each triple and of each pair (to,
    from) of axes that a matrix or a product joins.
    """

    models: int
    sets: Mapping[str, NodeSet]
    types: Mapping[tuple[str, ...], int]
    edges: Mapping[Pair, Values]
    triples: Mapping[tuple[str, str, str], Values]
    nodes: Mapping[str, Values]
    loops: Mapping[str, Values]
    like: Tensor
    """A scalar of the dtype and device of the weights."""

    def masked(self, pair: Pair) -> bool:
        """Whether a mask leaves edges of a pair of axes out."""
        return pair in self.edges and self.edges[pair].present is not None

    def chunks(self, channels: int) -> Iterator[Fields]:
        """The fields of so many models at a time as `CACHED` has room for their edge states of so many channels."""
        entries = sum(self.sets[nodes[0]].size * self.sets[nodes[1]].size for nodes in self.types)
        room = CACHED.get(self.like.device.type, CACHED["cpu"])
        size = max(MIN_CHUNK, room // max(1, entries * channels))
        for first in range(0, self.models, size):
            part = slice(first, min(first + size, self.models))
            yield replace(
                self,
                models=part.stop - part.start,
                edges={nodes: value.of(part) for nodes, value in self.edges.items()},
                triples={nodes: value.of(part) for nodes, value in self.triples.items()},
                nodes={axis: value.of(part) for axis, value in self.nodes.items()},
                loops={axis: value.of(part) for axis, value in self.loops.items()},
            )


def read_fields(spec: WeightSpec, params: Mapping[str, Tensor]) -> Fields:
    """The fields of stacked effective params (models, ...)."""
    by_axes: dict[tuple[bool, tuple[str, ...]], list[Row]] = {}
    for row in rows(spec, params):
        by_axes.setdefault((spec.tensors[row.tensor].diagonal, row.nodes), []).append(row)
    parts: dict[tuple[bool, int], dict[tuple[str, ...], Values]] = {}
    for (diagonal, nodes), members in by_axes.items():
        parts.setdefault((diagonal, len(nodes)), {})[nodes] = _values(members)
    edges, triples = parts.get((False, 2), {}), parts.get((False, 3), {})
    joined = [*edges, *triples, *((to, source) for to, *sources in triples for source in sources)]
    first = next(iter(params.values()))
    return Fields(
        models=first.shape[0],
        sets={name: _node_set(spec, name) for name, axis in spec.axes.items() if axis.kind != "channel"},
        types={nodes: type_of_connection(spec, nodes) for nodes in joined},
        edges={(to, source): value for (to, source), value in edges.items()},
        triples={(to, a, b): value for (to, a, b), value in triples.items()},
        nodes={axis: value for (axis,), value in parts.get((False, 1), {}).items()},
        loops={axis: value for (axis,), value in parts.get((True, 1), {}).items()},
        like=first.new_zeros(()),
    )


def _values(members: list[Row]) -> Values:
    present = None
    if any(row.mask is not None for row in members):
        masks = [torch.ones_like(row.value) if row.mask is None else row.mask.expand_as(row.value) for row in members]
        present = torch.stack(masks, dim=-1).to(members[0].value.dtype)
    channels = _indices(tuple(row.channel for row in members), members[0].value.device)
    return Values(values=torch.stack([row.masked for row in members], dim=-1), channels=channels, present=present)


@lru_cache(maxsize=1024)
def _indices(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Indices on a device, copied there once: a copy would end the capture of a CUDA graph."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)


def _node_set(spec: WeightSpec, name: str) -> NodeSet:
    axis = spec.axes[name]
    return NodeSet(
        size=axis.size,
        kind=NODE_KINDS.index(axis.kind),
        layer=axis.layer,
        nonlinearity=NONLINEARITIES.index(axis.nonlinearity),
        ordered=not axis.permutable,
    )
