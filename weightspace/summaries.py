"""Invariant summaries of a model as one fixed-length vector for all families."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from weightspace.graph import EDGE_TYPES, Layout, dense_graphs
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
    graphs, models = dense_graphs(spec, params), len(stack)
    of_edges, of_nodes = _groups(graphs.layout)
    edges, nodes, present = graphs.edges.flatten(1), graphs.nodes.flatten(1), graphs.present.flatten(1) > 0
    summaries = edges.new_full((models, NUM_SUMMARIES), torch.nan)
    of_weights = summaries[:, : NUM_SUMMARIES - _PER_MAP * _ROLES].unflatten(1, (-1, _PER_WEIGHTS))
    of_maps = summaries[:, NUM_SUMMARIES - _PER_MAP * _ROLES :].unflatten(1, (_ROLES, _PER_MAP))
    for i, group in of_edges.items():
        of_weights[:, i] = _sizes(edges[:, group], present[:, group].expand(models, -1))
    for i, group in of_nodes.items():
        values = nodes[:, group]
        of_weights[:, i] = _sizes(values, torch.ones_like(values, dtype=torch.bool))
    by_role: dict[str, list[Tensor]] = {}
    for row in rows(spec, params, spec.recurrent()):
        by_role.setdefault(row.role, []).append(_spectrum(row.masked, row.conjugated))
    for role, spectra in by_role.items():
        of_maps[:, ROW_ROLES.index(role)] = torch.stack(spectra).nanmean(0)
    return summaries


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _groups(declared: Layout) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Positions in flat edge and node channels of the weights of each connection type or node kind, and role.

    By the number of their summary, those without weights left out; both slots of a role are summarised together.
    """
    channels = torch.arange(declared.node_roles.shape[-1], device=declared.kind.device) % _ROLES
    edges = [
        (declared.edge_type == kind)[..., None] & (declared.edge_roles > 0) & (channels == role)
        for kind, role in product(range(len(EDGE_TYPES)), range(_ROLES))
    ]
    nodes = [
        (declared.kind == kind)[:, None] & (declared.node_roles > 0) & (channels == role)
        for kind, role in product(range(len(NODE_KINDS)), range(_ROLES))
    ]
    of_edges = {i: mask.flatten().nonzero()[:, 0] for i, mask in enumerate(edges) if mask.any()}
    of_nodes = {i: mask.flatten().nonzero()[:, 0] for i, mask in enumerate(nodes, len(edges)) if mask.any()}
    return of_edges, of_nodes


def _sizes(values: Tensor, present: Tensor) -> Tensor:
    """Log rms and quantiles of |w| / rms (models, 1 + shares) of weights (models, weight), NaN where there is none."""
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
