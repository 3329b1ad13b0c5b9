"""The bases of encoders that read models as graphs: limits, scales, declared terms, pooled states and their head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS, NONLINEARITIES
from weightspace.encoders.base import Encoder, refuse_outside
from weightspace.encoders.fields import Fields, Pair, read_fields
from weightspace.encoders.graph_level import Fitted, Summaries
from weightspace.encoders.lifts import EdgeLift, NodeLift
from weightspace.encoders.scales import FieldScales
from weightspace.families import Family
from weightspace.graph import EDGE_TYPES, num_nodes
from weightspace.store import Stack

Edges = tuple[dict[Pair, Tensor], dict[Pair, Tensor]]
"""First states of edges by pair of axes, and where they exist."""
Invariants = Callable[[Fields, Edges, dict[str, Tensor]], Tensor]
"""Fields of some models, first states of their edges and of their nodes -> invariants (models, width)."""


class GraphEncoder(Encoder):
    """Base of encoders that pool states of a graph: subclasses write `pooled`, and make the `head` that reads it.

    Parts that are `Fitted`, scales and summaries, learn from the training models. With `summaries` the head gets the
    model's invariant summaries (`summaries_of`), standardised over training, beside the pooled states. Models of more
    than `max_layers` layers, or `max_ends` inputs or outputs, or more product nodes than `max_pairs`, are refused.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    symmetry: ClassVar[frozenset[str]] = frozenset({"permutation"})
    max_pairs: ClassVar[int | None] = None
    """Most product nodes of a model: dense edge fields grow with the square of all nodes. None without a limit."""
    head: nn.Module

    def __init__(
        self, embedding_dim: int, sizes: Mapping[str, int], max_layers: int, max_ends: int, summaries: bool = False
    ) -> None:
        super().__init__(embedding_dim)
        refuse_outside({**sizes, "max_layers": max_layers, "max_ends": max_ends})
        self.max_sizes = {"layers": (max_layers, "max_layers"), "ends": (max_ends, "max_ends")}
        if self.max_pairs is not None:
            self.max_sizes["pairs"] = (self.max_pairs, "")
        self.summaries = Summaries() if summaries else None

    @abstractmethod
    def pooled(self, stack: Stack) -> Tensor:
        """Invariants (models, width) of the models of a stack, which the head reads."""

    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Scales of weights, and moments of summaries where they are read, over the training models, as buffers."""
        fit(self, stacks)

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of all models of the stacks, one stack after another."""
        return self.embedded(torch.cat([self.pooled(stack) for stack in stacks]), stacks)

    def embedded(self, pooled: Tensor, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) from the invariants (models, width) of the models of stacks."""
        if self.summaries is not None:
            pooled = torch.cat([pooled, torch.cat([self.summaries(stack) for stack in stacks])], dim=1)
        embeddings: Tensor = self.head(pooled)
        return embeddings

    def read_width(self, pooled: int) -> int:
        """Columns that the head reads: `pooled` invariants, and the summaries where they are read."""
        return pooled + (0 if self.summaries is None else self.summaries.width)


class DenseEncoder(GraphEncoder):
    """Base of encoders with a state for every node and every pair of nodes, and learned terms for their classes."""

    max_pairs: ClassVar[int | None] = 1024
    numbers_per_pair: int
    """About the numbers that are held at once for each pair of nodes."""

    def bytes_of(self, family: Family) -> int:
        """About the bytes that reading one model takes: those of its pairs of nodes."""
        return 4 * self.numbers_per_pair * num_nodes(family.effective_spec) ** 2

    def embed_types(self, edge_dim: int) -> None:
        """Make the vectors of connection types, of an edge and of the opposite one; the first is of absent edges."""
        self.edge_type = nn.Embedding(len(EDGE_TYPES) + 1, edge_dim)
        self.edge_type_reverse = nn.Embedding(len(EDGE_TYPES) + 1, edge_dim)

    def embed_nodes(self, node_dim: int, max_layers: int) -> None:
        """Make the vectors of node kinds, layers and nonlinearities."""
        self.kind = nn.Embedding(len(NODE_KINDS), node_dim)
        self.node_layer = nn.Embedding(max_layers, node_dim)
        self.nonlinearity = nn.Embedding(len(NONLINEARITIES), node_dim)

    @torch.no_grad()
    def start_from_weights(self, edge_in: nn.Linear, of_weights: int) -> None:
        """Start with edge states of spread 1 that come from weights, the first `of_weights` inputs of `edge_in`.

        Terms of the declaration are the same in all models of a cohort: where they are the larger part of a state,
        models differ by a hundredth of what the head reads, and training hardly leaves their mean.
        """
        # The variance of these draws is a third of 1 / inputs; a weight and its opposite share the spread.
        edge_in.weight[:, :of_weights].mul_((1.5 * edge_in.in_features) ** 0.5)
        for embedding in (self.edge_type, self.edge_type_reverse):
            embedding.weight.mul_(0.1)
        for embedding in (self.kind, self.node_layer, self.nonlinearity):
            embedding.weight.mul_(0.3)

    def type_terms(self, edge_type: Tensor, edge_type_reverse: Tensor) -> Tensor:
        """Vectors (..., edge_dim) of edges of these types (...), -1 where nothing is connected."""
        terms: Tensor = self.edge_type(edge_type + 1) + self.edge_type_reverse(edge_type_reverse + 1)
        return terms

    def node_terms(self, kind: Tensor, layer: Tensor, nonlinearity: Tensor) -> Tensor:
        """Vectors (node, node_dim) of nodes of these kinds, layers and nonlinearities (node,)."""
        terms: Tensor = self.kind(kind) + self.node_layer(layer) + self.nonlinearity(nonlinearity)
        return terms


class FieldEncoder(GraphEncoder):
    """Base of encoders on fields of node axes: weights are lifted to channels, a few models at a time."""

    edges: EdgeLift
    nodes: NodeLift
    scales: FieldScales
    edge_dim: int

    @abstractmethod
    def over(self, fields: Fields) -> Invariants:
        """The invariants of models of one declaration, to be used for as many of them as there are."""

    def pooled(self, stack: Stack) -> Tensor:
        """Invariants (models, width) of the models of a stack."""
        fields = read_fields(*stack.effective)
        edges, nodes = self.edges.over(fields, self.scales), self.nodes.over(fields, self.scales)
        invariants = self.over(fields)
        chunks = fields.chunks(self.edge_dim)
        return torch.cat([invariants(chunk, edges(chunk), nodes(chunk)) for chunk in chunks])


def fit(encoder: nn.Module, stacks: Iterable[Stack]) -> None:
    """Let all parts of an encoder that are `Fitted` learn from training models."""
    parts = [part for part in encoder.children() if isinstance(part, Fitted)]
    for stack in stacks:
        for part in parts:
            part.add(stack)
    for part in parts:
        part.settle()
