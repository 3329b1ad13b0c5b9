"""The hybrid: the graph of a recurrent model, whose nodes hold what the units did when the model was queried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS, NONLINEARITIES
from weightspace.encoders.activities import STATES, correlations, num_statistics, statistics, trajectories
from weightspace.encoders.base import refuse_outside
from weightspace.encoders.graph_level import Standardised, Summaries
from weightspace.encoders.interview import Interview, Interviewer
from weightspace.encoders.pooling import class_means, one_hot_kinds, read_out
from weightspace.encoders.positions import codes, num_codes
from weightspace.encoders.queries import Mode
from weightspace.encoders.responses import Responses
from weightspace.encoders.scales import WeightScales
from weightspace.graph import CHANNELS, DenseGraphs, dense_graphs
from weightspace.store import Stack

PLANES, CORRELATIONS = 4, 3
"""Weights, weights backwards, squares, squares backwards, each by channel; correlations of activities."""
CODES = num_codes(256)


class QueriedGraph(Interviewer):
    """Queries and weights in one graph: every node holds its unit's activity, and weights carry it to other nodes.

    Queries are those of `Querying`, and so are the readings that enter at the level of the model, beside the invariant
    summaries of its weights. A node holds its biases, its self-loop, and the activity of its unit, input or output in
    response to the queries: the whole trajectory, its moments, its correlation with the outputs, and how fast it
    forgets an input. x_i <- x_i + MLP(x_i, asinh(sum_p sum_j A^p_ij V_p x_j / sqrt(nodes)), mean_j x_j), where the A^p
    are the weights of each channel, their squares, both in both directions, and the correlations of activities (probed
    features after Kofinas et al., Graph Neural Networks for Learning Equivariant Representations of Neural Networks,
    ICLR 2024, arXiv 2403.12143). Queries learn from what is read at the level of the model; no gradient passes through
    activities. Invariant to permutations of hidden units and factors; signs and scales of units are seen, and so is
    the size of states that may be rescaled. Models with more than `max_inputs` or `max_outputs` are refused.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    symmetry: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(
        self,
        embedding_dim: int = 64,
        mode: Mode = "deep_linear",
        num_queries: int = 8,
        num_steps: int = 24,
        node_dim: int = 24,
        num_layers: int = 2,
        max_inputs: int = 16,
        max_outputs: int = 16,
    ) -> None:
        super().__init__(embedding_dim)
        refuse_outside({"node_dim": node_dim, "num_layers": num_layers})
        self.interview = Interview(mode, num_queries, num_steps, node_dim, 2 * node_dim, max_inputs, max_outputs)
        self.scales, self.summaries = WeightScales(), Summaries()
        self.max_outputs = max_outputs
        self.statistics = Standardised(num_statistics(num_steps, self.interview.kick, max_outputs), 1)
        features = 3 * CHANNELS + CODES + 1 + STATES * num_steps * num_queries + self.statistics.width
        self.node_in = nn.Linear(features, node_dim)
        self.kind = nn.Embedding(len(NODE_KINDS), node_dim)
        self.nonlinearity = nn.Embedding(len(NONLINEARITIES), node_dim)
        self.rounds = nn.ModuleList(Round(node_dim) for _ in range(num_layers))
        self.summary = nn.Sequential(nn.Linear(self.summaries.width, node_dim), nn.SiLU())
        pooled = self.interview.width + node_dim + 2 * len(NODE_KINDS) * node_dim
        self.head = read_out(pooled, 2 * embedding_dim, embedding_dim)

    @torch.no_grad()
    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Scales of weights, summaries, readings and activities over the training models, as buffers."""
        self.interview.fit_standardisation(self._also_fitted(stacks))
        for part in (self.scales, self.summaries, self.statistics):
            part.settle()

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of stacks."""
        read, responses = self.interview(stacks)
        pooled = [self._pooled(self.scales(_graphs(answer.stack)), answer) for answer in responses]
        summaries = self.summary(torch.cat([self.summaries(stack) for stack in stacks]))
        embedding: Tensor = self.head(torch.cat([read, summaries, torch.cat(pooled)], dim=1))
        return embedding

    def _also_fitted(self, stacks: Iterable[Stack]) -> Iterable[Stack]:
        """The same stacks, each taken into account by what is not part of the interview."""
        for stack in stacks:
            graphs = _graphs(stack)
            self.scales.add(stack)
            self.summaries.add(stack)
            (responses,), _ = self.interview.ask([stack])
            activity = trajectories(responses, graphs.layout.offsets, graphs.nodes.shape[1])
            columns = statistics(activity[:, :, 0], responses, self.max_outputs)
            self.statistics.add(columns.flatten(0, 1)[..., None])
            yield stack

    def _pooled(self, graphs: DenseGraphs, responses: Responses) -> Tensor:
        """Means and mean squares of node states by kind (models, 2 * kind * channel)."""
        with torch.no_grad():
            activity = trajectories(responses, graphs.layout.offsets, graphs.nodes.shape[1])
            maps, chosen = _maps(graphs, activity[:, :, 0])
        x = self._nodes(graphs, activity, responses)
        for layer in self.rounds:
            x = layer(x, maps, chosen)
        return class_means(torch.cat([x, x.square()], dim=-1), one_hot_kinds(graphs.layout.kind, x))

    def _nodes(self, graphs: DenseGraphs, activity: Tensor, responses: Responses) -> Tensor:
        """First node states (models, node, channel)."""
        where, (models, size) = graphs.layout, graphs.nodes.shape[:2]
        loops = graphs.edges.diagonal(dim1=1, dim2=2).mT
        values = [F.pad(part, (0, CHANNELS - part.shape[-1])) for part in (graphs.nodes, loops)]
        roles = F.pad(where.node_roles, (0, CHANNELS - where.node_roles.shape[-1])).to(graphs.nodes)
        ordered = (where.position >= 0)[:, None].to(graphs.nodes)
        places = codes(int(where.position.max()) + 1, CODES, graphs.nodes)[where.position.clamp(min=0)] * ordered
        declared = torch.cat([roles, places, where.layer[:, None].to(roles)], dim=1).expand(models, -1, -1)
        done = torch.asinh(activity.chunk(2, dim=4)[0].to(roles)).flatten(2)
        with torch.no_grad():
            columns = statistics(activity[:, :, 0], responses, self.max_outputs)
            columns = self.statistics(columns.flatten(0, 1)[..., None]).unflatten(0, (models, size))
        x: Tensor = self.node_in(torch.cat([*values, declared, done, columns], dim=-1))
        kinds: Tensor = self.kind(where.kind) + self.nonlinearity(where.nonlinearity)
        return x + kinds


class Round(nn.Module):
    """One round in which weights and correlations carry the states of nodes to each other."""

    def __init__(self, node_dim: int) -> None:
        super().__init__()
        shape = (PLANES * CHANNELS + CORRELATIONS, node_dim, node_dim)
        self.values = nn.Parameter(torch.randn(shape) / node_dim**0.5)
        self.node = nn.Sequential(
            nn.Linear(3 * node_dim, 2 * node_dim), nn.SiLU(), nn.Linear(2 * node_dim, node_dim)
        )

    def forward(self, x: Tensor, maps: Tensor, chosen: Tensor) -> Tensor:
        """Next states of nodes x (models, node, channel), by maps (models, to, plane * from) of the chosen planes."""
        sent = torch.matmul(x[:, None], self.values[chosen]).flatten(1, 2)
        heard = torch.asinh(maps @ sent / x.shape[1] ** 0.5)
        next_x: Tensor = x + self.node(torch.cat([x, heard, x.mean(1, keepdim=True).expand_as(x)], dim=-1))
        return next_x


def _graphs(stack: Stack) -> DenseGraphs:
    return dense_graphs(*stack.effective)


def _maps(graphs: DenseGraphs, activity: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (models, to, plane * from) that a family has, and the number of each plane."""
    channels = graphs.layout.edge_roles.flatten(0, 1).any(0).nonzero().flatten()
    forward = graphs.edges[..., channels].permute(0, 3, 1, 2)
    planes = [forward, forward.mT, forward.square(), forward.square().mT, correlations(activity).to(forward)]
    maps = torch.cat(planes, dim=1)
    # Squares of weights that blew up stay finite, and in proportion while they are small.
    maps = torch.asinh(maps).transpose(1, 2).flatten(2)
    numbers = [plane * CHANNELS + channels for plane in range(PLANES)]
    rest = torch.arange(PLANES * CHANNELS, PLANES * CHANNELS + CORRELATIONS, device=channels.device)
    return maps, torch.cat([*numbers, rest])
