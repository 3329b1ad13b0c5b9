"""Sizes of the paths from inputs through recurrent weights to outputs, read off weights without running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightspace.rows import Row, RowSpec, rows
from weightspace.spec import Params, WeightSpec

NUM_PATHS = 9
"""Lengths k of paths W_out W^k W_in, from 0."""
SMALLEST = 1e-12
"""Sizes below are taken for this one, so that logarithms are finite."""


def markov_of(spec: WeightSpec, params: Params) -> dict[str, Tensor]:
    """Columns (models,) float64 of stacked effective params: log sizes of the paths W_out W^k W_in, k = 0 to 8.

    For each row role with recurrent maps, W (hidden, hidden) holds its maps among all hidden units, W_in (hidden,
    input) those from the inputs, W_out (output, hidden) the read-out of any role; a size is the root mean square of the
    product, a Markov parameter where the system is linear (Kailath, Linear Systems, 1980). `size.ROLE.k` is of absolute
    values, so that no sign matters; `ROLE.k`, with signs, is there where declared sign flips leave it unchanged.
    Lengths that no path has are left out; factors, products of units and coefficients make no linear path.
    """
    maps = [row for row in rows(spec, params) if _is_linear(spec, row)]
    roles = dict.fromkeys(row.role for row in maps if _kinds(spec, row) == ("hidden", "hidden"))
    columns: dict[str, Tensor] = {}
    for role in roles:
        parts = _parts(spec, maps, role)
        entries: dict[str, Callable[[Row], Tensor]] = {f"size.{role}": lambda row: row.masked.double().abs()}
        if all(_carries_signs(spec, row) for part in parts for row in part):
            entries[role] = lambda row: row.masked.double()
        there = _path_sizes(spec, parts, lambda row: torch.ones_like(row.masked[:1]))
        for name, entry in entries.items():
            sizes = _path_sizes(spec, parts, entry)
            known = [k for k, exists in enumerate(there) if exists.item() > 0]
            columns |= {f"{name}.{k}": torch.log(sizes[k].clamp(min=SMALLEST)) for k in known}
    return columns


def _parts(spec: WeightSpec, maps: Sequence[Row], role: str) -> tuple[list[Row], list[Row], list[Row]]:
    """The maps that make W_out, W and W_in of a role; where it reads no input itself, those of all roles do."""
    kinds = [(_kinds(spec, row), row) for row in maps]
    matrix = [row for joined, row in kinds if joined == ("hidden", "hidden") and row.role == role]
    reads = [row for joined, row in kinds if joined == ("hidden", "input")]
    readout = [row for joined, row in kinds if joined == ("output", "hidden")]
    return readout, matrix, [row for row in reads if row.role == role] or reads


def _kinds(spec: WeightSpec, row: RowSpec) -> tuple[str, str]:
    """Kinds of the nodes that a matrix, or the diagonal of one, joins (to, from)."""
    return spec.axes[row.nodes[0]].kind, spec.axes[row.nodes[-1]].kind


def _is_linear(spec: WeightSpec, row: RowSpec) -> bool:
    """Whether a row is a map among inputs, hidden units and outputs."""
    tensor = spec.tensors[row.tensor]
    joins = len(row.nodes) == 2 or tensor.diagonal
    return joins and tensor.use == "map" and "factor" not in _kinds(spec, row)


def _carries_signs(spec: WeightSpec, row: RowSpec) -> bool:
    """Whether a sign flip of the units at either end flips the entries, M -> S M S, so that it cancels in products."""
    if len(row.nodes) == 1:
        # Of a diagonal, both ends are one unit, whose two flips cancel.
        return not row.signs[0]
    flips = {name: gauge.axis for name, gauge in spec.gauges.items() if gauge.kind != "positive"}
    declared = [{name for name, axis in flips.items() if axis == node} for node in row.nodes]
    return all(set(signs) == names for signs, names in zip(row.signs, declared, strict=True))


def _path_sizes(spec: WeightSpec, parts: Sequence[Sequence[Row]], entry: Callable[[Row], Tensor]) -> list[Tensor]:
    """Root mean squares (models,) of W_out W^k W_in by k, from the entries (models, to, from) of each map."""
    joined = (("output", "hidden"), ("hidden", "hidden"), ("hidden", "input"))
    sample = entry(parts[1][0])
    readout, matrix, path = (
        _assembled(spec, part, kinds, sample, entry) for part, kinds in zip(parts, joined, strict=True)
    )
    sizes = []
    for _ in range(NUM_PATHS):
        end = readout @ path if readout.shape[1] else path
        sizes.append(end.square().mean((1, 2)).sqrt())
        path = matrix @ path
    return sizes


def _assembled(
    spec: WeightSpec, maps: Sequence[Row], kinds: tuple[str, str], sample: Tensor, entry: Callable[[Row], Tensor]
) -> Tensor:
    """The matrix (models, to, from) between all nodes of two kinds, each map at its axes; maps between the same add."""
    places: list[dict[str, slice]] = [{}, {}]
    for kind, side in zip(kinds, places, strict=True):
        end = 0
        for name, axis in spec.axes.items():
            if axis.kind == kind:
                side[name], end = slice(end, end + axis.size), end + axis.size
    sizes = [sum(place.stop - place.start for place in side.values()) for side in places]
    matrix = sample.new_zeros(sample.shape[0], *sizes)
    for row in maps:
        block = entry(row) if len(row.nodes) == 2 else torch.diag_embed(entry(row))
        matrix[:, places[0][row.nodes[0]], places[1][row.nodes[-1]]] += block
    return matrix
