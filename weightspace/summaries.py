"""What of a weight space its permutations and sign flips leave alone, as one vector with the same places for all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from weightspace.graph import EDGE_TYPES, dense_graphs
from weightspace.spec import NODE_KINDS, ROW_ROLES, Params, WeightSpec
from weightspace.store import Stack

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
POWERS = (1, 2, 3, 4)
_ROLES = len(ROW_ROLES)
_PER_WEIGHTS = 1 + len(SHARES)
_PER_MAP = len(SHARES) + len(POWERS)
NUM_SUMMARIES = _PER_WEIGHTS * (len(EDGE_TYPES) + len(NODE_KINDS)) * _ROLES + _PER_MAP * _ROLES


def signs_of(spec: WeightSpec, name: str, row: int) -> tuple[frozenset[str], frozenset[str]]:
    """Gauges that can flip the sign of a matrix row's entries by their target, and by their source.

    Where the two are equal, the square matrix is conjugated, M -> S M S, and traces of its powers stay; where both are
    empty, its entries keep their signs.
    """
    sides: tuple[set[str], set[str]] = (set(), set())
    first = len(spec.tensors[name].axes) - 2
    for gauge_name, gauge in spec.gauges.items():
        charges = gauge.charges.get(name)
        if charges is None or gauge.kind == "positive":
            continue
        for side, charge in enumerate(charges[first:]):
            if (charge[row] if isinstance(charge, tuple) else charge) % 2:
                sides[side].add(gauge_name)
    return frozenset(sides[0]), frozenset(sides[1])


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
        chosen = (where.edge_type == kind) & (where.edge_roles[..., role] > 0)
        present = graphs.present[:, chosen, role].expand(models, -1) > 0
        parts.append(_sizes(graphs.edges[:, chosen, role], present))
    for kind, role in product(range(len(NODE_KINDS)), range(_ROLES)):
        values = graphs.nodes[:, (where.kind == kind) & (where.node_roles[:, role] > 0), role]
        parts.append(_sizes(values, torch.ones_like(values, dtype=torch.bool)))
    by_role: list[list[Tensor]] = [[] for _ in ROW_ROLES]
    for role, conjugated, matrix in _recurrent_maps(spec, params):
        by_role[role].append(_spectrum(matrix, conjugated))
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


def _recurrent_maps(spec: WeightSpec, params: Params) -> Iterator[tuple[int, bool, Tensor]]:
    """(role, whether signs conjugate it, matrix (models, to, from)) of every row of every recurrent tensor."""
    for name in spec.recurrent():
        mask = spec.tensors[name].mask
        value = params[name] if mask is None else params[name] * params[mask]
        rows = value.unbind(1) if spec.channel_axis(name) else (value,)
        for i, (role, matrix) in enumerate(zip(spec.tensors[name].row_roles, rows, strict=True)):
            to, source = signs_of(spec, name, i)
            yield ROW_ROLES.index(role), to == source, matrix


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
