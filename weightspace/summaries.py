"""Invariant summaries of a model as one fixed-length vector for all families."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from weightspace.graph import EDGE_TYPES, dense_graphs
from weightspace.markov import NUM_PATHS, markov_of
from weightspace.rows import rows
from weightspace.spec import NODE_KINDS, ROW_ROLES
from weightspace.store import Stack

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
POWERS = (1, 2, 3, 4)
_ROLES = len(ROW_ROLES)
_PER_WEIGHTS = 1 + len(SHARES)
_PER_MAP = len(SHARES) + len(POWERS)
NUM_SUMMARIES = _PER_WEIGHTS * (len(EDGE_TYPES) + len(NODE_KINDS)) * _ROLES + _PER_MAP * _ROLES
NUM_MARKOV = NUM_PATHS * _ROLES


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
    declared, models = graphs.layout, len(stack)
    parts = []
    for kind, role in product(range(len(EDGE_TYPES)), range(_ROLES)):
        # Both slots of a role are summarised together.
        selected = (declared.edge_type == kind)[..., None] & (declared.edge_roles[..., role::_ROLES] > 0)
        present = graphs.present[..., role::_ROLES][:, selected].expand(models, -1) > 0
        parts.append(_sizes(graphs.edges[..., role::_ROLES][:, selected], present))
    for kind, role in product(range(len(NODE_KINDS)), range(_ROLES)):
        selected = (declared.kind == kind)[:, None] & (declared.node_roles[:, role::_ROLES] > 0)
        values = graphs.nodes[..., role::_ROLES][:, selected]
        parts.append(_sizes(values, torch.ones_like(values, dtype=torch.bool)))
    by_role: list[list[Tensor]] = [[] for _ in ROW_ROLES]
    for row in rows(spec, params, spec.recurrent()):
        by_role[ROW_ROLES.index(row.role)].append(_spectrum(row.masked, row.conjugated))
    unknown = parts[0].new_full((models, _PER_MAP), torch.nan)
    parts += [torch.stack(spectra).nanmean(0) if spectra else unknown for spectra in by_role]
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
    position = torch.tensor(SHARES, device=values.device) * (count[:, None] - 1).clamp(min=0)
    low = position.floor().long()
    high = torch.minimum(low + 1, (count[:, None] - 1).clamp(min=0))
    quantiles = torch.lerp(ordered.gather(1, low), ordered.gather(1, high), (position - low).to(values.dtype))
    summary = torch.cat([torch.log(square + 1e-8)[:, None] / 2, quantiles], dim=1)
    return torch.where(count[:, None] > 0, summary, torch.nan)


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
    powers = torch.stack(traces, dim=1)
    return torch.cat([quantiles, powers if conjugated else torch.full_like(powers, torch.nan)], dim=1)


@torch.no_grad()
def markov_summaries_of(stack: Stack) -> Tensor:
    """Log sizes (models, role x path) of the paths W_out W^k W_in of a stack's effective weights (see `markov_of`).

    With signs where declared sign flips leave them unchanged, else of absolute values; NaN where a model has none.
    """
    columns = markov_of(*stack.effective)
    unknown = next(iter(stack.params.values())).new_full((len(stack),), torch.nan)
    values = []
    for role, path in product(ROW_ROLES, range(NUM_PATHS)):
        column = columns.get(f"{role}.{path}", columns.get(f"size.{role}.{path}"))
        values.append(unknown if column is None else column.to(unknown))
    return torch.stack(values, dim=1)
