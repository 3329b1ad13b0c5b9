"""The declaration of a weight space: named axes and tensors, their symmetry group, its action on params."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from weightspace.declaration import (
    NODE_KINDS,
    NONLINEARITIES,
    ROW_ROLES,
    SLOTS,
    Axis,
    Charge,
    Gauge,
    TensorSpec,
    check_gauge,
    check_mask,
    check_tensor,
)
from weightspace.group import GroupElement, act_on_state, act_on_tensor, random_elements, random_tensor

__all__ = [
    "NODE_KINDS",
    "NONLINEARITIES",
    "ROW_ROLES",
    "SLOTS",
    "Axis",
    "Charge",
    "Gauge",
    "GroupElement",
    "Params",
    "State",
    "TensorSpec",
    "WeightSpec",
]

Params = dict[str, Tensor]
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """The weight space of one family at one size, from which symmetry, graphs, storage and checks all follow.

    Gauge names end in `@axis` in group elements; `unrepresented` names known symmetries that are not declared here,
    each with the reason.
    """

    axes: Mapping[str, Axis]
    tensors: Mapping[str, TensorSpec]
    states: Mapping[str, str | tuple[str, ...]]
    """Name of each state -> its axis, or its axes (channels, sites): it is stored flat, the last axis fastest."""
    gauges: Mapping[str, Gauge] = field(default_factory=dict)
    recurrence: Literal["dense", "diagonal"] = "dense"
    """"diagonal": of the states that a step reads, each unit's after it depend only on its own before it."""
    noise: Mapping[str, str] = field(default_factory=dict)
    """Name of each noise input -> the node axis it is drawn for."""
    unrepresented: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            check_tensor(self.axes, name, tensor)
            check_mask(self.tensors, name)
        for name, gauge in self.gauges.items():
            check_gauge(self.tensors, name, gauge)
        for name in self.states:
            for axis in self.state_axes(name):
                if axis not in self.axes:
                    declared = sorted(self.axes)
                    raise ValueError(f"Axis '{axis}' of the state '{name}' is not declared; declared are {declared}.")

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of one tensor's axes."""
        return tuple(self.axes[axis].size for axis in self.tensors[name].axes)

    def channel_axis(self, name: str) -> str | None:
        """The channel axis of a tensor, which comes first, or None."""
        axes = self.tensors[name].axes
        return axes[0] if axes and self.axes[axes[0]].kind == "channel" else None

    def num_rows(self, name: str) -> int:
        """Number of channel rows of a tensor (1 where it has no channel axis)."""
        channel = self.channel_axis(name)
        return self.axes[channel].size if channel else 1

    def row_names(self, name: str) -> tuple[str, ...]:
        """Names of the channel rows of a tensor, `("",)` where it has no channel axis."""
        channel = self.channel_axis(name)
        if channel is None:
            return ("",)
        return self.axes[channel].names or tuple(str(i) for i in range(self.axes[channel].size))

    def node_axes(self, name: str) -> tuple[str, ...]:
        """The node axes of a tensor: one for a vector, two for a matrix (to, from), three for products of two units."""
        return tuple(axis for axis in self.tensors[name].axes if self.axes[axis].kind != "channel")

    def connections(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(tensor, (to, from) or (to, from, from)) of every tensor that joins sets of nodes, masks left out."""
        for name, tensor in self.tensors.items():
            nodes = self.node_axes(name)
            if len(nodes) > 1 and tensor.role != "mask":
                yield name, nodes

    def matrices(self) -> Iterator[tuple[str, str, str]]:
        """(tensor, to axis, from axis) of every tensor that joins two sets of nodes, masks left out."""
        yield from ((name, *nodes) for name, nodes in self.connections() if len(nodes) == 2)

    def products(self) -> Iterator[tuple[str, str, tuple[str, str]]]:
        """(tensor, to axis, from axes) of every tensor that weighs products of two units, masks left out."""
        yield from ((name, nodes[0], nodes[1:]) for name, nodes in self.connections() if len(nodes) == 3)

    def vectors(self, *, diagonal: bool = False) -> Iterator[tuple[str, str]]:
        """(tensor, axis) of every tensor on one set of nodes, masks left out: either the diagonals or all others."""
        for name, tensor in self.tensors.items():
            nodes = self.node_axes(name)
            if len(nodes) == 1 and tensor.role != "mask" and tensor.diagonal == diagonal:
                yield name, nodes[0]

    def recurrent(self) -> tuple[str, ...]:
        """Names of the matrices that map a set of nodes to itself; coefficients are no maps."""
        return tuple(n for n, to, source in self.matrices() if to == source and self.tensors[n].use == "map")

    def recurrent_products(self) -> tuple[str, ...]:
        """Names of the maps with three node axes that read the nodes they write to."""
        return tuple(n for n, to, sources in self.products() if to in sources and self.tensors[n].use == "map")

    @property
    def permutable(self) -> tuple[str, ...]:
        """Names of the axes whose order has no meaning."""
        return tuple(name for name, axis in self.axes.items() if axis.permutable)

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the trained tensors."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.role == "trained")

    @property
    def num_parameters(self) -> int:
        """Number of trained scalars of one model."""
        return sum(int(torch.Size(self.shape(name)).numel()) for name in self.trained)

    @property
    def state_size(self) -> int:
        """Number of scalars in the state of one model."""
        return sum(self.size_of_state(name) for name in self.states)

    def state_axes(self, name: str) -> tuple[str, ...]:
        """The axes of one state."""
        axes = self.states[name]
        return (axes,) if isinstance(axes, str) else tuple(axes)

    def state_shape(self, name: str) -> tuple[int, ...]:
        """Sizes of one state's axes; it is stored flat."""
        return tuple(self.axes[axis].size for axis in self.state_axes(name))

    def size_of_state(self, name: str) -> int:
        """Number of scalars of one state of one model."""
        return prod(self.state_shape(name))

    @property
    def numbers_per_step(self) -> int:
        """Approximate number of sums in one step of one sequence: outputs of maps, pairs of coefficients."""
        total = 0
        for name, (to, *sources) in self.connections():
            sizes = [self.axes[source].size for source in sources]
            sums_per_output = prod(sizes) if self.tensors[name].use == "coefficient" else 1
            # Products of two units are summed over one unit first.
            sums_per_output = 1 + max(sizes) if sums_per_output == 1 and len(sizes) > 1 else sums_per_output
            total += self.num_rows(name) * self.axes[to].size * sums_per_output
        return total

    def check(self, params: Mapping[str, Tensor], *, stacked: bool) -> None:
        """Raise ValueError unless `params` has exactly the declared tensors in the declared sizes."""
        missing, unexpected = sorted(set(self.tensors) - set(params)), sorted(set(params) - set(self.tensors))
        if missing or unexpected:
            raise ValueError(f"Params do not fit the declaration: missing {missing}, unexpected {unexpected}.")
        for name, tensor in params.items():
            sizes = tuple(tensor.shape[1:] if stacked else tensor.shape)
            expected = self.shape(name)
            if len(sizes) != len(expected):
                raise ValueError(f"'{name}' has shape {sizes}, expected {expected} for axes {self.tensors[name].axes}.")
            for axis, size, declared in zip(self.tensors[name].axes, sizes, expected, strict=True):
                if size != declared:
                    raise ValueError(f"Axis '{axis}' of '{name}' has size {size}, but the declaration says {declared}.")

    def random_params(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Params:
        """Random params of one model in every tensor's domain, at a scale where outputs neither vanish nor saturate."""
        params = {}
        for name, tensor in self.tensors.items():
            shape = self.shape(name)
            sources = prod(shape[len(shape) - len(self.node_axes(name)) + 1 :])
            scale = 1.3 / sources**0.5 if len(self.node_axes(name)) > 1 else 0.7
            params[name] = random_tensor(tensor, shape, scale, generator, dtype)
        return params

    def random_elements(
        self, num_models: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> GroupElement:
        """A stack of random elements (tensors (models, axis)), one per model, for `act_stacked`."""
        return random_elements(self.axes, self.gauges, num_models, generator, dtype)

    def random_element(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> GroupElement:
        """A random element of the declared group: permutations uniform, signs fair, scales log-normal."""
        stack = self.random_elements(1, generator, dtype)
        return GroupElement(*({k: v[0] for k, v in part.items()} for part in (stack.permutations, stack.gauges)))

    def identity(self, dtype: torch.dtype = torch.float64) -> GroupElement:
        """The identity of the group."""
        permutations = {a: torch.arange(self.axes[a].size) for a in self.permutable}
        sizes = {f"{k}@{g.axis}": self.axes[g.axis].size for k, g in self.gauges.items()}
        return GroupElement(permutations, {k: torch.ones(size, dtype=dtype) for k, size in sizes.items()})

    def act(self, element: GroupElement, params: Mapping[str, Tensor]) -> Params:
        """The params of one model moved by one group element; the function they compute stays the same."""
        axes = {name: self.tensors[name].axes for name in params}
        return {name: act_on_tensor(self.gauges, element, name, axes[name], params[name]) for name in params}

    def act_stacked(self, elements: GroupElement, params: Mapping[str, Tensor]) -> Params:
        """Stacked params, each model moved by its own element (tensors of `elements` lead with models)."""
        return self.act(elements, params)

    def act_on_state(self, element: GroupElement, state: Mapping[str, Tensor]) -> State:
        """States (..., state) of one model moved along with its params."""
        shapes = {name: {axis: self.axes[axis].size for axis in self.state_axes(name)} for name in state}
        return {name: act_on_state(self.gauges, element, name, shapes[name], value) for name, value in state.items()}

    def act_on_noise(self, element: GroupElement, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Noise (..., axis) of one model moved along with its params; gauges charge it as they do a state."""
        axes = {name: {axis: self.axes[axis].size} for name, axis in self.noise.items()}
        return {name: act_on_state(self.gauges, element, name, axes[name], value) for name, value in noise.items()}

    def to_json(self) -> str:
        """The declaration as one line of JSON, equal specs giving equal text."""
        return self._json

    @cached_property
    def _json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> WeightSpec:
        """The declaration written by `to_json`."""
        data = json.loads(text)
        gauges = {
            name: Gauge(**{**gauge, "charges": {k: _tuples(v) for k, v in gauge["charges"].items()}})
            for name, gauge in data.pop("gauges").items()
        }
        axes = {name: Axis(**{**axis, "names": tuple(axis["names"])}) for name, axis in data.pop("axes").items()}
        tensors = {
            name: TensorSpec(**{**t, "axes": tuple(t["axes"]), "row_roles": tuple(t["row_roles"])})
            for name, t in data.pop("tensors").items()
        }
        states = {name: _tuples(axes) for name, axes in data.pop("states").items()}
        return cls(axes=axes, tensors=tensors, gauges=gauges, states=states, **data)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
