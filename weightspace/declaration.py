"""The parts of a declared weight space: axes, tensors and gauges, each refused where it contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Charge = int | tuple[int, ...]
"""Power of a gauge's factor; one per row where the rows of a channel axis differ."""

NODE_KINDS = ("input", "hidden", "output", "factor")
ROW_ROLES = ("drive", "gate", "timescale", "gain", "other")
SLOTS = 2
"""Rows of one role that may share a connection; the first has slot 0."""
NONLINEARITIES = ("identity", "tanh", "relu", "gated", "product", "spike")
VOCABULARY = 2
"""Version of the words above: encoders have weights per word, so checkpoints of another version do not fit."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One named axis: a set of nodes (input, hidden, output, factor) or of channels (gates)."""

    size: int
    kind: Literal["input", "hidden", "output", "factor", "channel"]
    permutable: bool = False
    layer: int = 0
    nonlinearity: str = "identity"
    """Function of a unit's summed input (one of `NONLINEARITIES`)."""
    names: tuple[str, ...] = ()
    """Names of the rows of a channel axis, in order (`("r", "z", "n")` of a GRU)."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor: its axes (matrices (to, from), as in torch.nn), its role, its domain, the roles of its rows.

    A channel axis, if any, comes first. One node axis makes a vector, or a diagonal; two a matrix; three, (to, from,
    from), weigh the products of two units each, as in a second-order network.
    """

    axes: tuple[str, ...]
    role: Literal["trained", "fixed", "mask"] = "trained"
    domain: Literal["real", "positive", "at_least_1", "even"] = "real"
    """Allowed values; "even": all, and the function does not depend on the sign of any single entry."""
    use: Literal["map", "coefficient"] = "map"
    """"map": inputs are multiplied by the tensor and summed; "coefficient": the number of a pair enters otherwise. Only
    a map has spectra, ranks and a scale of its outputs."""
    row_roles: tuple[str, ...] = ("drive",)
    """One of `ROW_ROLES` per row of the channel axis, or a single one where there is none."""
    mask: str | None = None
    """Name of the mask tensor (same axes), which is 1 where an entry exists."""
    diagonal: bool = False
    """True for a vector that is the diagonal of a recurrent matrix: it joins each unit to itself alone."""


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A rescaling of one axis that leaves the function unchanged: params are multiplied by g ** charge.

    `charges[tensor]` has one entry per axis of that tensor: 0 where the gauge does not act, an integer where it does,
    or a tuple of integers, one per row of the tensor's channel axis. Tensors not named have charge 0 throughout.
    `state_charges[state]` is the integer charge of that state, or of a noise, by its name. For signs only the parity of
    a charge matters.

    Example, the signs of an LSTM: all rows i, f, g, o of `weight_hh` (gate, hidden, hidden) read h, which flips with
    its unit, and row g alone writes with that sign: charges (0, (0, 0, 1, 0), 1).
    """

    axis: str
    kind: Literal["sign", "positive", "nonzero"]
    charges: Mapping[str, tuple[Charge, ...]]
    state_charges: Mapping[str, int] = field(default_factory=dict)


def check_tensor(axes: Mapping[str, Axis], name: str, tensor: TensorSpec) -> None:
    """Raise ValueError unless a tensor's axes are declared and readable: one to three node axes, channels first."""
    for axis in tensor.axes:
        if axis not in axes:
            raise ValueError(f"Axis '{axis}' of '{name}' is not declared; declared are {sorted(axes)}.")
    nodes = tuple(axis for axis in tensor.axes if axes[axis].kind != "channel")
    if len(nodes) not in (1, 2, 3):
        raise ValueError(
            f"'{name}' has {len(nodes)} node axes {nodes}, but a tensor is read as a vector on one set of nodes, as a "
            "matrix between two, or as weights of products between three; write it as a product of such tensors."
        )
    if tensor.axes[-len(nodes) :] != nodes or len(tensor.axes) > len(nodes) + 1:
        raise ValueError(f"'{name}' has axes {tensor.axes}; a channel axis comes first, and there is at most one.")
    rows = 1 if len(tensor.axes) == len(nodes) else axes[tensor.axes[0]].size
    if len(tensor.row_roles) != rows:
        raise ValueError(f"'{name}' has {rows} rows but {len(tensor.row_roles)} row roles.")
    unknown = set(tensor.row_roles) - set(ROW_ROLES)
    if unknown:
        raise ValueError(f"'{name}' has unknown row roles {sorted(unknown)}; known are {ROW_ROLES}.")
    empty = [axis for axis in tensor.axes if axes[axis].size < 1]
    if empty:
        size = axes[empty[0]].size
        raise ValueError(f"Axis '{empty[0]}' of '{name}' has size {size}; leave out tensors that have no entries.")
    if tensor.diagonal and len(nodes) != 1:
        raise ValueError(f"'{name}' is declared a diagonal, which has one node axis, but it has axes {tensor.axes}.")


def check_gauge(tensors: Mapping[str, TensorSpec], name: str, gauge: Gauge) -> None:
    """Raise ValueError unless a gauge has one charge per axis of every tensor that it names."""
    for tensor, charges in gauge.charges.items():
        if len(charges) != len(tensors[tensor].axes):
            raise ValueError(
                f"Gauge '{name}' gives {len(charges)} charges for '{tensor}', "
                f"which has {len(tensors[tensor].axes)} axes."
            )


def slots_of(axes: Mapping[str, Axis], tensors: Mapping[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Tensor (without masks) -> slot of each row: its number among the rows of its role on the same connection."""
    counts: dict[tuple[tuple[str, ...], str], int] = {}
    slots = {}
    for name, tensor in tensors.items():
        if tensor.role == "mask":
            continue
        nodes = tuple(axis for axis in tensor.axes if axes[axis].kind != "channel")
        # A diagonal shares the connections of a recurrent matrix on its axis.
        nodes = nodes * 2 if tensor.diagonal else nodes
        numbers = []
        for role in tensor.row_roles:
            numbers.append(counts.get((nodes, role), 0))
            counts[nodes, role] = numbers[-1] + 1
        slots[name] = tuple(numbers)
    return slots
