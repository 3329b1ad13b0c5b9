"""Hidden connections predicted from those that are left, by what moves along with permutations and sign flips."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightspace.rows import Row, rows, unfolded
from weightspace.spec import NODE_KINDS, ROW_ROLES, WeightSpec
from weightspace.store import Stack

NUM_BASES = 7
_NUM_CONTEXTS = 6


class Completion(nn.Module):
    """Predicts hidden weights of a matrix M (to, from), visible entries kept and hidden ones 0, as
    w_ij = rms(M) sum_k a_k(embedding, context_ij) B_k(M)_ij, with M in units of its visible rms.

    The B_k transform as M does when units are permuted and signs flipped, as far as the row's charges ask for it:
    M M^T M / (to + from) and M (M^T M)^2 / (to + from)^2, which complete what is of low rank, always; 1, the mean over
    sources and the mean over targets where no sign acts there; M^T and M M / sqrt(n) where M is conjugated. The context
    (rms of visible weights into i and out of j, sizes, self-connection) does not see signs. So the squared error of the
    prediction is as invariant as the embedding is. A tensor with three node axes is the matrix (to, pair of units).
    """

    def __init__(self, embedding_dim: int, width: int) -> None:
        super().__init__()
        self.target_kind, self.source_kind = nn.Embedding(len(NODE_KINDS), width), nn.Embedding(len(NODE_KINDS), width)
        self.role = nn.Embedding(len(ROW_ROLES), width)
        self.embedding = nn.Linear(embedding_dim, width)
        self.context = nn.Linear(_NUM_CONTEXTS, width, bias=False)
        self.coefficients = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, NUM_BASES))

    def forward(self, stack: Stack, hidden: Mapping[str, Tensor], embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of squared errors (models,), in units of each matrix row's mean square, and hidden weights (models,).

        `hidden` is what `MaskEdges.draw` gave for the stack; embeddings (models, embedding) are of the masked one.
        """
        spec = stack.family.spec
        errors, counts = embeddings.new_zeros(len(stack)), embeddings.new_zeros(len(stack))
        of_model = self.embedding(embeddings)
        names = [name for name, _ in spec.connections() if name in hidden]
        for row in rows(spec, stack.params, names):
            where = hidden[row.tensor] if spec.channel_axis(row.tensor) is None else hidden[row.tensor][:, row.index]
            matrix, where, there = unfolded(row.value), unfolded(where), _existing(row)
            kinds = [NODE_KINDS.index(kind) for kind in _kinds(spec, row)]
            bases, contexts, scale = _visible(row, matrix, where, there)
            model, i, j = where.nonzero(as_tuple=True)
            condition = of_model + self.target_kind.weight[kinds[0]] + self.source_kind.weight[kinds[1]]
            condition = condition + self.role.weight[ROW_ROLES.index(row.role)]
            a = self.coefficients(condition[model] + self.context(contexts[model, i, j]))
            predicted = scale[model] * (a * bases[model, i, j]).sum(-1)
            unit = (matrix * there).square().sum((1, 2)) / there.sum((1, 2)).clamp(min=1)
            error = (predicted - matrix[model, i, j]).square() / unit.clamp(min=1e-12)[model]
            errors = errors.index_add(0, model, error)
            counts = counts + where.sum((1, 2))
        return errors, counts


def _existing(row: Row) -> Tensor:
    """1 where a connection exists (models, to, from), 0 elsewhere."""
    return unfolded(torch.ones_like(row.value) if row.mask is None else (row.mask > 0).to(row.value.dtype))


def _kinds(spec: WeightSpec, row: Row) -> tuple[str, str]:
    """Node kinds of target and source; the source of a tensor with three node axes is a product node."""
    return spec.axes[row.nodes[0]].kind, spec.axes[row.nodes[1]].kind if len(row.nodes) == 2 else "factor"


@torch.no_grad()
def _visible(row: Row, matrix: Tensor, hidden: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bases (models, to, from, basis), contexts (models, to, from, context), and rms (models,) of the visible part."""
    left = there * ~hidden
    square = (matrix * left).square().sum((1, 2)) / left.sum((1, 2)).clamp(min=1)
    scale = square.sqrt()
    m = matrix * left / scale.clamp(min=1e-12)[:, None, None]
    to, source = m.shape[1:]
    by_target, by_source = row.signs[0], frozenset[str]().union(*row.signs[1:])
    nothing, total = torch.zeros_like(m), float(to + source)
    completed = m @ (m.mT @ m) / total
    bases = [
        completed,
        completed @ (m.mT @ m) / total,
        nothing if by_target or by_source else torch.ones_like(m),
        nothing if by_target else (m.sum(1, keepdim=True) / left.sum(1, keepdim=True).clamp(min=1)).expand_as(m),
        nothing if by_source else (m.sum(2, keepdim=True) / left.sum(2, keepdim=True).clamp(min=1)).expand_as(m),
        m.mT if row.conjugated else nothing,
        m @ m / to**0.5 if row.conjugated else nothing,
    ]
    into = (m.square().sum(2, keepdim=True) / left.sum(2, keepdim=True).clamp(min=1)).sqrt()
    out = (m.square().sum(1, keepdim=True) / left.sum(1, keepdim=True).clamp(min=1)).sqrt()
    self_connection = torch.eye(to, source, device=m.device, dtype=m.dtype) if row.is_square else nothing
    sizes = [torch.log(m.new_tensor(float(size))) for size in (to, source)]
    level = torch.log(square + 1e-8)[:, None, None] / 2
    contexts = [value.expand_as(m) for value in (into, out, self_connection, level, *sizes)]
    return torch.stack(bases, dim=-1), torch.stack(contexts, dim=-1), scale
