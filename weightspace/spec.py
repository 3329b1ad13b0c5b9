"""The declaration of a weight space: named axes, their symmetry group, and the group's action on params."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from weightspace.group import Charge, GroupElement, power, random_factors, scaled

__all__ = ["Axis", "Charge", "Gauge", "GroupElement", "Params", "State", "TensorSpec", "WeightSpec"]

Params = dict[str, Tensor]
State = dict[str, Tensor]

NODE_KINDS = ("input", "hidden", "output", "factor")
ROW_ROLES = ("drive", "gate", "timescale", "gain", "other")
NONLINEARITIES = ("identity", "tanh", "relu", "gated", "product", "spike")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One named axis: a set of nodes (input, hidden, output, factor) or of channels (gates)."""

    size: int
    kind: Literal["input", "hidden", "output", "factor", "channel"]
    permutable: bool = False
    layer: int = 0
    nonlinearity: str = "identity"
    """What the units of this axis apply to their summed input (one of `NONLINEARITIES`)."""
    names: tuple[str, ...] = ()
    """Names of the rows of a channel axis, in order (`("r", "z", "n")` of a GRU)."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor: its axes (matrices (to, from), as in torch.nn), its role, its domain, the roles of its rows."""

    axes: tuple[str, ...]
    role: Literal["trained", "fixed", "mask"] = "trained"
    domain: Literal["real", "positive", "at_least_1"] = "real"
    row_roles: tuple[str, ...] = ("drive",)
    """One of `ROW_ROLES` per row of the channel axis, or a single one where there is none."""
    mask: str | None = None
    """Name of the mask tensor (same axes) that says which entries exist."""
    diagonal: bool = False
    """Whether this vector is the diagonal of a recurrent matrix: it joins each unit to itself and to no other."""


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A rescaling of one axis that leaves the function unchanged: params are multiplied by g ** charge.

    `charges[tensor]` has one entry per axis of that tensor: 0 where the gauge does not act, an integer where it does,
    or a tuple of integers, one per row of the tensor's channel axis. Tensors not named have charge 0 throughout.
    `state_charges[state]` is the integer charge of that state. For signs only the parity of a charge matters.
    """

    axis: str
    kind: Literal["sign", "positive", "nonzero"]
    charges: Mapping[str, tuple[Charge, ...]]
    state_charges: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """The weight space of one family at one size, from which symmetry, graphs, storage and checks all follow.

    Gauge names end in `@axis` in group elements; `unrepresented` names known symmetries that are not declared here,
    each with the reason.
    """

    axes: Mapping[str, Axis]
    tensors: Mapping[str, TensorSpec]
    states: Mapping[str, str]
    """Name of each state -> the node axis it lives on."""
    gauges: Mapping[str, Gauge] = field(default_factory=dict)
    recurrence: Literal["dense", "diagonal"] = "dense"
    noise: Mapping[str, str] = field(default_factory=dict)
    """Name of each noise input -> the node axis it is drawn for."""
    unrepresented: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            self._check_declaration(name, tensor)
        for name, gauge in self.gauges.items():
            for tensor_name, charges in gauge.charges.items():
                if len(charges) != len(self.tensors[tensor_name].axes):
                    raise ValueError(
                        f"Gauge '{name}' gives {len(charges)} charges for '{tensor_name}', "
                        f"which has {len(self.tensors[tensor_name].axes)} axes."
                    )

    def _check_declaration(self, name: str, tensor: TensorSpec) -> None:
        for axis in tensor.axes:
            if axis not in self.axes:
                raise ValueError(f"Axis '{axis}' of '{name}' is not declared; declared are {sorted(self.axes)}.")
        nodes = self.node_axes(name)
        if len(nodes) not in (1, 2):
            raise ValueError(
                f"'{name}' has {len(nodes)} node axes {nodes}, but a tensor is read as a vector on one set of nodes or "
                "as a matrix between two; write it as a product of such tensors."
            )
        if tensor.axes[-len(nodes) :] != nodes or len(tensor.axes) > len(nodes) + 1:
            raise ValueError(f"'{name}' has axes {tensor.axes}; a channel axis comes first, and there is at most one.")
        rows = self.num_rows(name)
        if len(tensor.row_roles) != rows:
            raise ValueError(f"'{name}' has {rows} rows but {len(tensor.row_roles)} row roles.")
        unknown = set(tensor.row_roles) - set(ROW_ROLES)
        if unknown:
            raise ValueError(f"'{name}' has unknown row roles {sorted(unknown)}; known are {ROW_ROLES}.")
        if tensor.diagonal and len(nodes) != 1:
            raise ValueError(
                f"'{name}' is declared a diagonal, which has one node axis, but it has axes {tensor.axes}."
            )

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
        """The node axes of a tensor: two for a matrix (to, from), one for a vector."""
        return tuple(axis for axis in self.tensors[name].axes if self.axes[axis].kind != "channel")

    def matrices(self) -> Iterator[tuple[str, str, str]]:
        """(tensor, to axis, from axis) of every tensor that joins two sets of nodes, masks left out."""
        for name, tensor in self.tensors.items():
            nodes = self.node_axes(name)
            if len(nodes) == 2 and tensor.role != "mask":
                yield name, nodes[0], nodes[1]

    def vectors(self, *, diagonal: bool = False) -> Iterator[tuple[str, str]]:
        """(tensor, axis) of every tensor on one set of nodes, masks left out: either the diagonals or all others."""
        for name, tensor in self.tensors.items():
            nodes = self.node_axes(name)
            if len(nodes) == 1 and tensor.role != "mask" and tensor.diagonal == diagonal:
                yield name, nodes[0]

    def recurrent(self) -> tuple[str, ...]:
        """Names of the matrices that join a set of nodes to itself."""
        return tuple(name for name, to, source in self.matrices() if to == source)

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
        return sum(self.axes[axis].size for axis in self.states.values())

    def check(self, params: Mapping[str, Tensor], *, stacked: bool) -> None:
        """Raise ValueError unless `params` has exactly the declared tensors in the declared sizes."""
        missing, extra = sorted(set(self.tensors) - set(params)), sorted(set(params) - set(self.tensors))
        if missing or extra:
            raise ValueError(f"Params do not fit the declaration: missing {missing}, unexpected {extra}.")
        for name, tensor in params.items():
            found = tuple(tensor.shape[1:] if stacked else tensor.shape)
            expected = self.shape(name)
            if len(found) != len(expected):
                raise ValueError(f"'{name}' has shape {found}, expected {expected} for axes {self.tensors[name].axes}.")
            for axis, size, declared in zip(self.tensors[name].axes, found, expected, strict=True):
                if size != declared:
                    raise ValueError(f"Axis '{axis}' of '{name}' has size {size}, but the declaration says {declared}.")

    def random_params(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Params:
        """Random params of one model, valid in every tensor's domain, at a scale where the function is lively."""
        params = {}
        for name, tensor in self.tensors.items():
            shape = self.shape(name)
            scale = 1.3 / shape[-1] ** 0.5 if len(self.node_axes(name)) == 2 else 0.7
            value = torch.randn(shape, generator=generator, dtype=dtype) * scale
            if tensor.role == "mask":
                value = (torch.rand(shape, generator=generator, dtype=dtype) < 0.7).to(dtype)
            elif tensor.domain == "positive":
                value = value.abs() + 0.1
            elif tensor.domain == "at_least_1":
                value = 1.1 + value.abs()
            params[name] = value
        return params

    def random_elements(
        self, num_models: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> GroupElement:
        """A stack of random elements (tensors (models, axis)), one per model, for `act_stacked`."""
        permutations = {
            a: torch.rand(num_models, self.axes[a].size, generator=generator).argsort(dim=1) for a in self.permutable
        }
        gauges = {}
        for name, gauge in self.gauges.items():
            shape = (num_models, self.axes[gauge.axis].size)
            gauges[f"{name}@{gauge.axis}"] = random_factors(gauge.kind, shape, generator, dtype)
        return GroupElement(permutations, gauges)

    def random_element(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> GroupElement:
        """A random element of the declared group: permutations uniform, signs fair, scales log-normal."""
        stack = self.random_elements(1, generator, dtype)
        return GroupElement(*({k: v[0] for k, v in part.items()} for part in (stack.permutations, stack.gauges)))

    def identity(self, dtype: torch.dtype = torch.float64) -> GroupElement:
        """The element that moves nothing."""
        permutations = {a: torch.arange(self.axes[a].size) for a in self.permutable}
        sizes = {f"{k}@{g.axis}": self.axes[g.axis].size for k, g in self.gauges.items()}
        return GroupElement(permutations, {k: torch.ones(size, dtype=dtype) for k, size in sizes.items()})

    def act(self, element: GroupElement, params: Mapping[str, Tensor]) -> Params:
        """The params of one model moved by one group element; the function they compute stays the same."""
        return {name: self._act_on_tensor(element, name, tensor) for name, tensor in params.items()}

    def act_stacked(self, elements: GroupElement, params: Mapping[str, Tensor]) -> Params:
        """Stacked params, each model moved by its own element (tensors of `elements` lead with models)."""
        moved = torch.func.vmap(lambda p, g, w: self.act(GroupElement(p, g), w))
        return moved(elements.permutations, elements.gauges, dict(params))

    def act_on_state(self, element: GroupElement, state: Mapping[str, Tensor]) -> State:
        """States (..., axis) of one model moved along with its params."""
        moved = {}
        for name, value in state.items():
            axis = self.states[name]
            for gauge_name, gauge in self.gauges.items():
                charge = gauge.state_charges.get(name, 0)
                if gauge.axis == axis and charge:
                    value = value * power(element.gauges[f"{gauge_name}@{axis}"], charge, gauge.kind)
            if axis in element.permutations:
                value = value.index_select(-1, element.permutations[axis])
            moved[name] = value
        return moved

    def _act_on_tensor(self, element: GroupElement, name: str, tensor: Tensor) -> Tensor:
        axes = self.tensors[name].axes
        for gauge_name, gauge in self.gauges.items():
            charges = gauge.charges.get(name)
            if charges is not None:
                factor = element.gauges[f"{gauge_name}@{gauge.axis}"]
                for dim, charge in enumerate(charges):
                    tensor = scaled(tensor, dim, factor, charge, gauge.kind)
        for dim, axis in enumerate(axes):
            if axis in element.permutations:
                tensor = tensor.index_select(dim, element.permutations[axis])
        return tensor

    def to_json(self) -> str:
        """The declaration as one line of JSON, equal specs giving equal text."""
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
        return cls(axes=axes, tensors=tensors, gauges=gauges, **data)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
