"""A perceptron on singular values and eigenvalues of a model's maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.base import refuse_outside
from weightspace.encoders.readings import Readings
from weightspace.graph import CHANNELS, EDGE_TYPES, layout, pair_name
from weightspace.rows import Row, rows, unfolded
from weightspace.spec import Params, WeightSpec
from weightspace.store import Stack

THROUGH = len(EDGE_TYPES)
"""The type of products of two matrices, behind those of single matrices."""
ROUNDING, ROUNDING_OF_EIGENVALUES = 1e-12, 1e-8
"""Shares of the largest singular value below which values are rounding, and 0: eigenvalues are less certain."""


class Spectra(Readings):
    """Singular values and complex eigenvalues of each recurrent map by layer and role, resampled to `points`.

    Eigenvalues are ordered by modulus and enter as real part and |imaginary part|. Sorted values of n units become
    `points` values on straight lines between them: so sizes mix. Maps that share a layer and a role are taken together,
    as blocks of one matrix; a diagonal is a map whose spectrum is its entries, and a tensor with three node axes is one
    map for each unit of the axis that it does not write to. What is not recurrent enters by its singular values, by
    connection type and role (of a vector its norm and mean), and so do products of two matrices that meet in other
    units, such as W_ho W_ih or both factors of a low-rank map: so every tensor is read, and signs between two of them
    are. Masked weights are 0. Invariant to permutations of hidden units and factors by construction; no gradient passes
    to the weights.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    symmetry: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(
        self, embedding_dim: int = 64, width: int = 72, points: int = 9, max_layers: int = 4, dropout: float = 0.0
    ) -> None:
        refuse_outside({"points": points, "max_layers": max_layers})
        tables = {
            "recurrent": ((max_layers + 1) * CHANNELS, 3 * points),
            "maps": ((len(EDGE_TYPES) + 1) * CHANNELS, points),
            "vectors": (len(NODE_KINDS) * CHANNELS, 2),
        }
        super().__init__(embedding_dim, width, dropout, tables)
        self.points, self.max_layers = points, max_layers
        self.max_sizes = {"layers": (max_layers, "max_layers")}

    def read(self, stack: Stack) -> dict[str, Tensor]:
        """The tables `recurrent` (group per layer and role; the last layer is of products), `maps`, `vectors`."""
        spec, params = stack.effective
        # On the CPU in float64: spectra of many small matrices are slow on other devices, and not there on all.
        params = {name: value.detach().double().cpu() for name, value in params.items()}
        singular, eigen, flat, norms = (defaultdict[int, list[Tensor]](list) for _ in range(4))
        for group, matrices in self._recurrent(spec, params):
            singular[group].append(_singular(matrices))
            eigen[group].append(_eigenvalues(matrices))
        for group, matrix in _maps(spec, params):
            flat[group].append(torch.linalg.svdvals(matrix))
        for row in _of_length(1, spec, params):
            if not spec.tensors[row.tensor].diagonal:
                group = NODE_KINDS.index(spec.axes[row.nodes[0]].kind) * CHANNELS + row.channel
                norms[group].append(row.masked)
        recurrent = self._table_of("recurrent", {g: self._spectrum(singular[g], eigen[g]) for g in singular}, stack)
        maps = self._table_of("maps", {g: self._resampled(_falling(values)) for g, values in flat.items()}, stack)
        lengths = {g: _length_and_mean(torch.cat(values, 1)) for g, values in norms.items()}
        return {"recurrent": recurrent, "maps": maps, "vectors": self._table_of("vectors", lengths, stack)}

    def _recurrent(self, spec: WeightSpec, params: Params) -> Iterator[tuple[int, Tensor]]:
        """(group, (models, matrix, node, node), or (models, node) of a diagonal) of all maps of a layer to itself."""
        for row in rows(spec, params):
            group = spec.axes[row.nodes[0]].layer * CHANNELS + row.channel
            if spec.tensors[row.tensor].diagonal:
                yield group, row.masked
            elif row.is_square:
                yield group, row.masked[:, None]
            elif row.nodes[0] in row.nodes[1:]:
                # The axis that is not the map's own enumerates its matrices.
                axis = 1 + row.nodes[1:].index(row.nodes[0])
                yield group, row.masked.movedim(3 if axis == 1 else 2, 1)
        for outer, inner in _products(spec, params):
            # Factors' own way round has the same eigenvalues once more.
            if outer.nodes[0] == inner.nodes[1] and spec.axes[outer.nodes[0]].kind == "hidden":
                yield self.max_layers * CHANNELS + outer.channel, (outer.masked @ inner.masked)[:, None]

    def _spectrum(self, singular: list[Tensor], eigen: list[Tensor]) -> Tensor:
        values, sizes = torch.cat(eigen, dim=1), _falling(singular)
        values = values * (values.abs() > ROUNDING_OF_EIGENVALUES * sizes[:, :1])
        # Among values of one modulus, such as 1 and -1, rounding must not choose: the real part does.
        order = (values.abs() + 1e-4 * values.real).argsort(dim=1, descending=True)
        values = values.gather(1, order)
        parts = (sizes, values.real, values.imag.abs())
        return torch.cat([self._resampled(part) for part in parts], dim=1)

    def _resampled(self, values: Tensor) -> Tensor:
        """Values (models, n) at `points` places from the first to the last (models, point)."""
        if self.points == 1:
            return values[:, :1]
        return F.interpolate(values[:, None], size=self.points, mode="linear", align_corners=True)[:, 0]

    def _table_of(self, name: str, groups: Mapping[int, Tensor], stack: Stack) -> Tensor:
        table = torch.full((len(stack), *self._table(name).mean.shape), torch.nan, dtype=torch.float64)
        for group, values in groups.items():
            table[:, group] = values
        return table.to(stack.rows.device)


def _maps(spec: WeightSpec, params: Params) -> Iterator[tuple[int, Tensor]]:
    """(group, (models, to, from)) of every map that is not recurrent, by connection type and role."""
    where = layout(spec)
    for row in (*_of_length(2, spec, params), *_of_length(3, spec, params)):
        if row.nodes[0] not in row.nodes[1:]:
            source = row.nodes[1] if len(row.nodes) == 2 else pair_name(row.nodes[1], row.nodes[2])
            kind = int(where.edge_type[where.offsets[row.nodes[0]].start, where.offsets[source].start])
            yield kind * CHANNELS + row.channel, unfolded(row.masked)
    for outer, inner in _products(spec, params):
        if outer.nodes[0] != inner.nodes[1]:
            yield THROUGH * CHANNELS + outer.channel, outer.masked @ inner.masked


def _products(spec: WeightSpec, params: Params) -> Iterator[tuple[Row, Row]]:
    """Rows (to, between) and (between, from) of matrices that meet in units that are neither `to` nor `from`."""
    matrices = [row for row in _of_length(2, spec, params) if not row.is_square]
    for outer, inner in product(matrices, matrices):
        if outer.nodes[1] == inner.nodes[0]:
            yield outer, inner


def _of_length(count: int, spec: WeightSpec, params: Params) -> Iterator[Row]:
    yield from (row for row in rows(spec, params) if len(row.nodes) == count)


def _singular(matrices: Tensor) -> Tensor:
    return matrices.abs() if matrices.dim() == 2 else torch.linalg.svdvals(matrices).flatten(1)


def _eigenvalues(matrices: Tensor) -> Tensor:
    return torch.complex(matrices, 0 * matrices) if matrices.dim() == 2 else torch.linalg.eigvals(matrices).flatten(1)


def _falling(values: list[Tensor]) -> Tensor:
    ordered = torch.cat(values, dim=1).sort(dim=1, descending=True).values
    return ordered * (ordered > ROUNDING * ordered[:, :1])


def _length_and_mean(values: Tensor) -> Tensor:
    """Norm and mean (models, 2) of vectors (models, unit): the mean sees signs, which no norm does."""
    return torch.cat([values.norm(dim=1, keepdim=True), values.mean(1, keepdim=True)], dim=1)
