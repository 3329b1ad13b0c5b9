"""Channel rows of tensors: graphs, features, summaries, objectives and labels read weights through them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from weightspace.declaration import ROW_ROLES, slots_of
from weightspace.spec import Params, WeightSpec


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """The declaration of one channel row of a tensor."""

    tensor: str
    index: int
    """Number of the row along the channel axis, 0 where there is none."""
    name: str
    """Name of the row, "" where there is no channel axis."""
    role: str
    slot: int
    """Number of this row among those of its role on the same connection, from 0."""
    nodes: tuple[str, ...]
    """The node axes: (to, from), (to, from, from) or the one of a vector."""
    signs: tuple[frozenset[str], ...]
    """Per node axis, the gauges that flip the sign of entries with their unit there, those of odd charge."""

    @property
    def channel(self) -> int:
        """Channel of its role and slot on an edge or node."""
        return channel_of(self.role, self.slot)

    @property
    def label(self) -> str:
        """TENSOR, or TENSOR.ROW where there is a channel axis."""
        return f"{self.tensor}.{self.name}" if self.name else self.tensor

    @property
    def is_square(self) -> bool:
        """True for a matrix that joins a set of units to itself."""
        return len(self.nodes) == 2 and self.nodes[0] == self.nodes[1]

    @property
    def conjugated(self) -> bool:
        """True for a square matrix M on which signs act as S M S, which keeps the traces of its powers."""
        return self.is_square and self.signs[0] == self.signs[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Row(RowSpec):
    """One channel row of a tensor of stacked params."""

    value: Tensor
    """(models, ...) along the node axes; of an even tensor the absolute values."""
    mask: Tensor | None
    """(models, ...) 1 where an entry exists, None where all do."""

    @property
    def masked(self) -> Tensor:
        """The values, 0 where no entry exists."""
        return self.value if self.mask is None else self.value * self.mask


def channel_of(role: str, slot: int) -> int:
    """Channel of a role and slot on an edge or node."""
    return slot * len(ROW_ROLES) + ROW_ROLES.index(role)


def unfolded(value: Tensor) -> Tensor:
    """Values (models, to, from, from) as matrices (models, to, pair); all others as they are."""
    return value.flatten(2) if value.dim() > 3 else value


def row_specs(spec: WeightSpec, names: Iterable[str] | None = None) -> Iterator[RowSpec]:
    """Every channel row of these tensors as declared; of all but masks if None."""
    return iter(_row_specs(spec.to_json(), tuple(spec.tensors), None if names is None else tuple(names)))


@lru_cache(maxsize=1024)
def _row_specs(text: str, order: tuple[str, ...], names: tuple[str, ...] | None) -> tuple[RowSpec, ...]:
    """Rows of a declaration written as JSON, tensors in this order: kept, because encoders read them in every batch."""
    spec = WeightSpec.from_json(text)
    ordered = replace(spec, tensors={name: spec.tensors[name] for name in order})
    return tuple(_specs_of_rows(ordered, names))


def _specs_of_rows(spec: WeightSpec, names: tuple[str, ...] | None) -> Iterator[RowSpec]:
    slots = slots_of(spec.axes, spec.tensors)
    for name in slots if names is None else names:
        roles = spec.tensors[name].row_roles
        for index, (row, role, slot) in enumerate(zip(spec.row_names(name), roles, slots[name], strict=True)):
            yield RowSpec(
                tensor=name,
                index=index,
                name=row,
                role=role,
                slot=slot,
                nodes=spec.node_axes(name),
                signs=_signs(spec, name, index),
            )


def rows(spec: WeightSpec, params: Mapping[str, Tensor], names: Iterable[str] | None = None) -> Iterator[Row]:
    """Every channel row of these tensors of stacked params (models, ...); of all but masks if None."""
    for row in row_specs(spec, names):
        tensor = spec.tensors[row.tensor]
        value, mask = params[row.tensor], None if tensor.mask is None else params[tensor.mask]
        if spec.channel_axis(row.tensor) is not None:
            value, mask = value[:, row.index], None if mask is None else mask[:, row.index]
        value = value.abs() if tensor.domain == "even" else value
        yield Row(**vars(row), value=value, mask=mask)


def flip_even(spec: WeightSpec, params: Mapping[str, Tensor], generator: torch.Generator) -> Params:
    """Params with the signs of random entries of even tensors flipped: the function they compute stays the same."""
    flipped = dict(params)
    for name, tensor in spec.tensors.items():
        if tensor.domain == "even":
            signs = 1 - 2 * torch.randint(2, params[name].shape, generator=generator)
            flipped[name] = params[name] * signs.to(params[name])
    return flipped


def _signs(spec: WeightSpec, name: str, row: int) -> tuple[frozenset[str], ...]:
    """Per node axis of a tensor, the gauges whose charge on a row is odd."""
    count = len(spec.node_axes(name))
    sides: list[set[str]] = [set() for _ in range(count)]
    for gauge_name, gauge in spec.gauges.items():
        charges = gauge.charges.get(name)
        if charges is None or gauge.kind == "positive" or spec.tensors[name].domain == "even":
            continue
        for side, charge in zip(sides, charges[-count:], strict=True):
            if (charge[row] if isinstance(charge, tuple) else charge) % 2:
                side.add(gauge_name)
    return tuple(frozenset(side) for side in sides)
