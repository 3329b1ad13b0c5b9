"""Invariant summaries of a model as one fixed-length vector for all families."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from weightspace.graph import EDGE_TYPES, dense_graphs
from weightspace.rows import Row, rows
from weightspace.spec import NODE_KINDS, ROW_ROLES, SLOTS, WeightSpec
from weightspace.store import Stack

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
POWERS = (1, 2, 3, 4)
_ROLES = len(ROW_ROLES)
_PER_WEIGHTS = 1 + len(SHARES)
_PER_MAP = len(SHARES) + len(POWERS)
NUM_SUMMARIES = _PER_WEIGHTS * (len(EDGE_TYPES) + len(NODE_KINDS)) * _ROLES + _PER_MAP * _ROLES
MARKOV_STEPS = 8
NUM_MARKOV = (1 + MARKOV_STEPS) * _ROLES


@torch.no_grad()
def summaries_of(stack: Stack) -> Tensor:
    """Summaries (models, summary) of a stack's effective weights, NaN where a model has no such weights.

    For every connection type and role, and every node kind and role: log of the root mean square and quantiles of
    |w| / rms. For every role of the recurrent maps M (to, from), averaged over layers: quantiles of the singular values
    and traces of powers of M / (rms sqrt(n)), the latter over sqrt(n) and only where signs conjugate M. None of these
    changes when hidden units are permuted or signs flipped as declared; positive rescaling changes all but the traces.
    """
    spec, params = stack.effective
    graphs = dense_graphs(spec, params)
    where, models = graphs.layout, len(stack)
    parts = []
    for kind, role in product(range(len(EDGE_TYPES)), range(_ROLES)):
        # Both slots of a role are summarised together.
        chosen = (where.edge_type == kind)[..., None] & (where.edge_roles[..., role::_ROLES] > 0)
        present = graphs.present[..., role::_ROLES][:, chosen].expand(models, -1) > 0
        parts.append(_sizes(graphs.edges[..., role::_ROLES][:, chosen], present))
    for kind, role in product(range(len(NODE_KINDS)), range(_ROLES)):
        chosen = (where.kind == kind)[:, None] & (where.node_roles[:, role::_ROLES] > 0)
        values = graphs.nodes[..., role::_ROLES][:, chosen]
        parts.append(_sizes(values, torch.ones_like(values, dtype=torch.bool)))
    by_role: list[list[Tensor]] = [[] for _ in ROW_ROLES]
    for row in rows(spec, params, spec.recurrent()):
        by_role[ROW_ROLES.index(row.role)].append(_spectrum(row.masked, row.conjugated))
    unknown = parts[0].new_full((models, _PER_MAP), torch.nan)
    parts += [torch.stack(found).nanmean(0) if found else unknown for found in by_role]
    return torch.cat(parts, dim=1)


def _sizes(values: Tensor, present: Tensor) -> Tensor:
    """Log rms and quantiles of |w| / rms (models, 1 + shares) of weights (models, weight), NaN where there is none."""
    if values.shape[1] == 0:
        return values.new_full((values.shape[0], _PER_WEIGHTS), torch.nan)
    count = present.sum(1)
    size = torch.where(present, values.abs(), 0.0)
    square = size.square().sum(1) / count.clamp(min=1)
    relative = size / square.sqrt().clamp(min=1e-12)[:, None]
    ordered = torch.where(present, relative, torch.inf).sort(dim=1).values
    place = torch.tensor(SHARES, device=values.device) * (count[:, None] - 1).clamp(min=0)
    low = place.floor().long()
    high = torch.minimum(low + 1, (count[:, None] - 1).clamp(min=0))
    quantiles = torch.lerp(ordered.gather(1, low), ordered.gather(1, high), (place - low).to(values.dtype))
    found = torch.cat([torch.log(square + 1e-8)[:, None] / 2, quantiles], dim=1)
    return torch.where(count[:, None] > 0, found, torch.nan)


def _spectrum(matrix: Tensor, conjugated: bool) -> Tensor:
    """Quantiles of singular values and traces of powers (models, shares + powers) of matrices (models, node, node)."""
    size = matrix.shape[-1]
    rms = matrix.square().mean((1, 2)).sqrt().clamp(min=1e-12)
    scaled = matrix / (rms * size**0.5)[:, None, None]
    shares = torch.tensor(SHARES, dtype=matrix.dtype, device=matrix.device)
    quantiles = torch.quantile(torch.linalg.svdvals(scaled), shares, dim=1).T
    traces, power = [], scaled
    for _ in POWERS:
        traces.append(power.diagonal(dim1=1, dim2=2).sum(1) / size**0.5)
        power = power @ scaled
    found = torch.stack(traces, dim=1)
    return torch.cat([quantiles, found if conjugated else torch.full_like(found, torch.nan)], dim=1)


@torch.no_grad()
def markov_of(stack: Stack) -> Tensor:
    """Log root mean squares (models, role x step) of the entries of W_out W^k W_in, k = 0 to 8, of a stack's effective
    weights, NaN where a model has no such weights.

    For every role, W_in holds its connections from inputs to all units (hidden ones of all layers, factors), W those
    between units, W_out those of any role from units to outputs: what an input leaves in the outputs k connections
    later, were the model linear (the Markov parameters of a linear system). Where a role has two rows on a connection,
    their mean counts. Where the declared signs do not cancel along such walks (gates, factors), absolute values take
    the place of weights. So neither permutations nor signs change any of it. Tensors with three node axes are left out.
    """
    spec, params = stack.effective
    maps = [name for name, tensor in spec.tensors.items() if tensor.role != "mask" and tensor.use == "map"]
    found = list(rows(spec, params, maps))
    unknown = next(iter(params.values())).new_full((len(stack), 1 + MARKOV_STEPS), torch.nan)
    readout = [row for row in found if len(row.nodes) == 2 and _side(spec, row.nodes) == ("output", "unit")]
    parts = []
    for role in ROW_ROLES:
        chains = []
        for slot in range(SLOTS):
            own = [row for row in found if row.role == role and row.slot == slot and _joins_units(spec, row)]
            if readout and any(_side(spec, row.nodes) == ("unit", "input") for row in own):
                chains.append(_markov(spec, [*own, *readout]))
        parts.append(torch.stack(chains).mean(0) if chains else unknown)
    return torch.cat(parts, dim=1)


def _side(spec: WeightSpec, nodes: Sequence[str]) -> tuple[str, ...]:
    """Of every node axis whether it is of inputs, outputs or units."""
    kinds = (spec.axes[axis].kind for axis in nodes)
    return tuple(kind if kind in ("input", "output") else "unit" for kind in kinds)


def _joins_units(spec: WeightSpec, row: Row) -> bool:
    """Whether a row is a connection from inputs or units to units, or the diagonal of one."""
    if len(row.nodes) == 1:
        return spec.tensors[row.tensor].diagonal
    return len(row.nodes) == 2 and _side(spec, row.nodes) in (("unit", "input"), ("unit", "unit"))


def _markov(spec: WeightSpec, walked: Sequence[Row]) -> Tensor:
    """Log root mean squares (models, 1 + steps) of W_out W^k W_in of these rows."""
    places, sizes = {}, {"input": 0, "output": 0, "unit": 0}
    for name, axis in spec.axes.items():
        if axis.kind != "channel":
            side = _side(spec, [name])[0]
            places[name] = slice(sizes[side], sizes[side] + axis.size)
            sizes[side] += axis.size
    blocks: dict[tuple[str, ...], Tensor] = {}
    exact = _signs_cancel(walked)
    for row in walked:
        to, source = row.nodes[0], row.nodes[-1]
        value = row.masked.diag_embed() if len(row.nodes) == 1 else row.masked
        key = (*_side(spec, [to]), *_side(spec, [source]))
        shape = (value.shape[0], sizes[key[0]], sizes[key[1]])
        block = blocks.setdefault(key, value.new_zeros(shape))
        block[:, places[to], places[source]] += value if exact else value.abs()
    reached, left = blocks["unit", "input"], blocks["output", "unit"]
    squares = []
    for _ in range(1 + MARKOV_STEPS):
        squares.append((left @ reached).square().mean((1, 2)))
        between = blocks.get(("unit", "unit"))
        reached = torch.zeros_like(reached) if between is None else between @ reached
    return torch.log(torch.stack(squares, dim=1) + 1e-12) / 2


def _signs_cancel(walked: Sequence[Row]) -> bool:
    """Whether signs cancel along every walk: all rows flip alike with the units of an axis, none with a diagonal's."""
    flips: dict[str, set[frozenset[str]]] = {}
    for row in walked:
        if len(row.nodes) == 1:
            if row.signs[0]:
                return False
            continue
        for axis, signs in zip(row.nodes, row.signs, strict=True):
            flips.setdefault(axis, set()).add(signs)
    return all(len(kinds) == 1 for kinds in flips.values())
