"""Parities of the weights of a graph: which of them change sign with which units, read from declared charges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from weightspace.graph import layout, pair_name
from weightspace.rows import channel_of, row_specs
from weightspace.spec import WeightSpec

SignSlots = Mapping[str, tuple[tuple[str, ...], ...]]
"""Set of nodes -> names of the gauges that flip signs there, sorted, for the unit itself, or for each of a pair."""


@dataclass(frozen=True, eq=False)
class Parities:
    """Parities of all declared weights of a graph.

    A unit with G gauges that flip signs has signs s_1 ... s_G, and 2^G parities, sets of gauges as bits of a number: 0
    is even; a feature of parity a is multiplied by the product of the signs in a. A feature of an edge has one parity
    at its target and one at its source, those of the two charges of its row. Products of features add parities (xor).
    Units without a gauge, and those of ordered axes, have no signs: everything is even there. A product node has the
    signs of both units of its pair.
    """

    num: int
    """Parities of the unit with the most gauges."""
    edges: Tensor
    """(parity, parity, node, node, channel) 1 at the parities (target, source) of a weight, 0 elsewhere.

    Connections of weight 1 from a unit to its product nodes have all parities of the unit: the node has its sign, too.
    """
    nodes: Tensor
    """(parity, node, channel) 1 at the parity of a weight, 0 elsewhere."""

    def to(self, like: Tensor) -> Parities:
        """The same parities in the dtype and on the device of a tensor."""
        return Parities(self.num, self.edges.to(like), self.nodes.to(like))


def parities_of(spec: WeightSpec) -> Parities:
    """The parities of a spec's graph (cached)."""
    return _parities(spec.to_json())


@lru_cache(maxsize=64)
def _parities(text: str) -> Parities:
    # Cached tensors are also used where gradients are recorded, which inference tensors do not allow.
    with torch.inference_mode(False):
        return _parities_of(WeightSpec.from_json(text))


def _parities_of(spec: WeightSpec) -> Parities:
    where, slots = layout(spec), _sign_slots(spec)
    num = 2 ** max(sum(map(len, of_nodes)) for of_nodes in slots.values())
    edges = torch.zeros(num, num, *where.edge_roles.shape)
    nodes = torch.zeros(num, *where.node_roles.shape)
    for row in row_specs(spec):
        target = where.offsets[row.nodes[0]]
        parity = _number(row.signs[:1], slots[row.nodes[0]])
        if spec.tensors[row.tensor].diagonal:
            units = torch.arange(target.start, target.stop)
            edges[parity, 0, units, units, row.channel] = 1
        elif len(row.nodes) == 1:
            nodes[parity, target, row.channel] = 1
        else:
            sources = pair_name(*row.nodes[1:]) if len(row.nodes) == 3 else row.nodes[1]
            edges[parity, _number(row.signs[1:], slots[sources]), target, where.offsets[sources], row.channel] = 1
    for of_pair, of_unit, pairs, units in _constants(spec, slots):
        edges[of_pair, of_unit, pairs, units, channel_of("drive", 0)] = 1
    return Parities(num, edges, nodes)


def _sign_slots(spec: WeightSpec) -> SignSlots:
    flips = {name: gauge.axis for name, gauge in sorted(spec.gauges.items()) if gauge.kind != "positive"}
    of_axis = {
        axis: tuple(name for name, of in flips.items() if of == axis)
        for axis in spec.axes
        if spec.axes[axis].kind != "channel"
    }
    slots: dict[str, tuple[tuple[str, ...], ...]] = {axis: (names,) for axis, names in of_axis.items()}
    return slots | {pair_name(a, b): (of_axis[a], of_axis[b]) for _, _, (a, b) in spec.products()}


def _number(signs: tuple[frozenset[str], ...], slots: tuple[tuple[str, ...], ...]) -> int:
    """The parity that has these gauges, one set for each unit of a node."""
    flags = [name in flipped for flipped, names in zip(signs, slots, strict=True) for name in names]
    return sum(2**bit for bit, flag in enumerate(flags) if flag)


def _constants(spec: WeightSpec, slots: SignSlots) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(parity of the pair, parity of the unit, pairs, units) of connections of weight 1 from units to product nodes."""
    offsets = layout(spec).offsets
    for axes in dict.fromkeys(sources for _, _, sources in spec.products()):
        part, (first, second) = offsets[pair_name(*axes)], slots[pair_name(*axes)]
        pairs = torch.arange(part.stop - part.start)
        size = spec.axes[axes[1]].size
        # The second unit of a pair is the fastest index, and its gauges are the higher bits.
        sides = ((pairs // size, first, 1), (pairs % size, second, 2 ** len(first)))
        for axis, (units, gauges, shift) in zip(axes, sides, strict=True):
            for parity in range(2 ** len(gauges)):
                yield parity * shift, parity, part.start + pairs, offsets[axis].start + units
