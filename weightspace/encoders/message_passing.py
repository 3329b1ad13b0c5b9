"""Message passing over the recurrent graph, with edge updates and channel-wise products of edge fields."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from weightspace.declaration import NODE_KINDS, NONLINEARITIES, ROW_ROLES, VOCABULARY
from weightspace.encoders.base import Encoder
from weightspace.encoders.fused.availability import why_not
from weightspace.encoders.fused.packing import packed
from weightspace.encoders.fused.rounds import rounds
from weightspace.encoders.fused.stack import Surroundings, Widths
from weightspace.encoders.layer import Layer
from weightspace.encoders.topology import Dense, Sparse, Topology
from weightspace.graph import CHANNELS, EDGE_TYPES, DenseGraphs, Layout, dense_graphs
from weightspace.store import Stack

MAX_WIDTH = 2**16
MAX_PAIRS = 1024
"""Most product nodes of a model: dense edge fields grow with the square of all nodes."""


class MessagePassing(Encoder):
    """Message passing with edge states, invariant to permutations of hidden units and factors.

    Edge states hold both directions of a connection, and self-loops are a type of their own (neural graphs, Kofinas et
    al., ICLR 2024, arXiv 2403.12143); nodes aggregate source-modulated messages (FiLM, Brockschmidt, ICML 2020) by mean
    and maximum (after PNA, Corso et al., NeurIPS 2020); factor nodes add the product of what they get from states and
    from inputs; edge fields are multiplied as matrices, channel by channel: trace(W^k) is reached in log2 k layers.
    Weights are divided by their root mean square over the training models, by connection type and channel. Models of
    more than `max_layers` layers are refused, and so are those of more than `max_ends` inputs or outputs, whose places
    it could not tell apart, and those with more than 1024 product nodes.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    symmetry: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(
        self,
        embedding_dim: int = 64,
        edge_dim: int = 16,
        node_dim: int = 64,
        product_dim: int = 8,
        num_layers: int = 3,
        dropout: float = 0.0,
        max_layers: int = 8,
        max_ends: int = 256,
    ) -> None:
        super().__init__(embedding_dim)
        sizes = {"edge_dim": edge_dim, "node_dim": node_dim, "product_dim": product_dim, "num_layers": num_layers}
        for name, size in {**sizes, "max_layers": max_layers, "max_ends": max_ends}.items():
            if not 1 <= size <= MAX_WIDTH:
                raise ValueError(f"`{name}` (={size}) must be from 1 to {MAX_WIDTH}.")
        most = {"layers": (max_layers, "max_layers"), "ends": (max_ends, "max_ends")}
        self.widths = Widths(edge_dim, node_dim, product_dim, num_layers)
        self.max_sizes = {**most, "pairs": (MAX_PAIRS, "")}
        # Waves of lengths 2, 4, ... tell as many places apart as the longest one has.
        self.num_frequencies = max(1, math.ceil(math.log2(max_ends)))
        roles = len(ROW_ROLES)
        self.register_buffer("vocabulary", torch.tensor(VOCABULARY))
        self.register_buffer("edge_scale", torch.ones(len(EDGE_TYPES), CHANNELS))
        self.register_buffer("node_scale", torch.ones(len(NODE_KINDS), CHANNELS))
        self.edge_in = nn.Linear(4 * roles, edge_dim)
        self.edge_type = nn.Embedding(len(EDGE_TYPES) + 1, edge_dim)
        self.edge_type_reverse = nn.Embedding(len(EDGE_TYPES) + 1, edge_dim)
        self.node_in = nn.Linear(2 * roles + 2 * self.num_frequencies + 2, node_dim)
        self.kind = nn.Embedding(len(NODE_KINDS), node_dim)
        self.node_layer = nn.Embedding(max_layers, node_dim)
        self.nonlinearity = nn.Embedding(len(NONLINEARITIES), node_dim)
        # Weights of slot 1 start as those of slot 0 in another order: so they take no draws from the stream of slot 0.
        self.edge_more = nn.Parameter(self.edge_in.weight.detach().flip(0).clone())
        self.node_more = nn.Parameter(self.node_in.weight[:, : 2 * roles].detach().flip(0).clone())
        self.layers = nn.ModuleList(Layer(edge_dim, node_dim, product_dim) for _ in range(num_layers))
        pooled = 2 * len(NODE_KINDS) * node_dim + 2 * len(EDGE_TYPES) * edge_dim
        self.head = nn.Sequential(
            nn.LayerNorm(pooled),
            nn.Dropout(dropout),
            nn.Linear(pooled, 2 * embedding_dim),
            nn.SiLU(),
            nn.Linear(2 * embedding_dim, embedding_dim),
        )

    edge_scale: Tensor
    node_scale: Tensor

    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Root mean square of training weights by (connection type, channel) and (node kind, channel), as buffers."""
        sums = [torch.zeros_like(b, dtype=torch.float64) for b in (self.edge_scale, self.node_scale) for _ in range(2)]
        for stack in stacks:
            graphs = dense_graphs(*stack.effective)
            where = graphs.layout
            present = graphs.present.expand_as(graphs.edges).double()
            kinds = where.node_roles.expand_as(graphs.nodes).double()
            types = where.edge_type.clamp(min=0).flatten()
            squares = [graphs.edges.double().square().sum(0).flatten(0, 1), present.sum(0).flatten(0, 1)]
            squares += [graphs.nodes.double().square().sum(0), kinds.sum(0)]
            for total, index, values in zip(sums, (types, types, where.kind, where.kind), squares, strict=True):
                total[:, : values.shape[-1]].index_add_(0, index, values)
        for scale, square, count in ((self.edge_scale, *sums[:2]), (self.node_scale, *sums[2:])):
            rms = torch.sqrt(square / count.clamp(min=1))
            scale.copy_(torch.where(rms > 0, rms, 1.0))

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of stacks, by the dense path."""
        weights: dict[int, Tensor] = {}
        return torch.cat([self._forward_dense(dense_graphs(*stack.effective), weights) for stack in stacks])

    def forward_data(self, batch: Data) -> Tensor:
        """Embeddings (models, embedding_dim) of a PyG batch of `graph.to_data` graphs, by the sparse path."""
        graph = batch.batch if isinstance(batch, Batch) else torch.zeros_like(batch.kind)
        present, opposite = batch.edge_present, batch.edge_present_reverse
        forward = batch.edge_attr / self.edge_scale[batch.edge_type]
        backward = batch.edge_attr_reverse / self.edge_scale[batch.edge_type_reverse]
        e = torch.relu(self._edges(forward, backward, present, opposite, batch.edge_type, batch.edge_type_reverse))
        topology = Sparse(batch.edge_index, graph)
        size = torch.bincount(graph)[graph].to(batch.x.dtype)
        x = self._nodes(batch.x / self.node_scale[batch.kind], batch.node_roles, batch, size)
        return self._embed(topology, e, x, batch.kind, batch.edge_type)

    def _forward_dense(self, graphs: DenseGraphs, weights: dict[int, Tensor]) -> Tensor:
        """Embeddings of one stack; `weights` keeps the packed ones by number of channels, for the next stack."""
        where, present, opposite = graphs.layout, graphs.present, graphs.present.transpose(1, 2)
        edges = graphs.edges / self.edge_scale[where.edge_type, : graphs.edges.shape[-1]]
        nodes = graphs.nodes / self.node_scale[where.kind, : graphs.nodes.shape[-1]]
        topology = Dense(torch.maximum(present, opposite).amax(-1))
        size = torch.full((where.kind.shape[0],), float(where.kind.shape[0]), device=edges.device)
        types = where.edge_type, where.edge_type.T
        # In C, the maximum over no edges would be that of absent ones; only masks isolate a node.
        isolated = topology.present.shape[0] > 1 and bool(topology.isolated.any())
        if not isolated and why_not(self.widths, (edges, nodes, present), self.edge_in.weight) is None:
            fixed = self._fixed_edges(present, opposite, *types), self._fixed_nodes(where.node_roles, where, size)
            channels = edges.shape[-1]
            if channels not in weights:
                first = [*self._edge_weights(channels)[:2], self._node_weights(channels)]
                weights[channels] = packed(self.widths, first, self.layers)
            around = _surroundings(topology, where, edges)
            pooled = rounds(self.widths, around, (edges, nodes), fixed, weights[channels])
            embeddings: Tensor = self.head(self._over_present(pooled, topology, where))
            return embeddings
        e = torch.relu(topology.silence(self._edges(edges, edges.transpose(1, 2), present, opposite, *types)))
        return self._embed(topology, e, self._nodes(nodes, where.node_roles, where, size), where.kind, where.edge_type)

    def _over_present(self, pooled: Tensor, topology: Dense, where: Layout) -> Tensor:
        """Pooled states whose edges are means over declared ones, as means over those that masks leave."""
        if topology.present.shape[0] == 1:
            return pooled
        nodes, edges = pooled.split([2 * len(NODE_KINDS) * self.widths.node, 2 * len(EDGE_TYPES) * self.widths.edge], 1)
        types = F.one_hot(where.edge_type + 1, len(EDGE_TYPES) + 1)[..., 1:].to(pooled.dtype)
        per_edge = topology.declared_per_edge(types)[..., None]
        return torch.cat([nodes, (edges.unflatten(1, (len(EDGE_TYPES), -1)) * per_edge).flatten(1)], dim=1)

    def _edges(self, forward: Tensor, backward: Tensor, present: Tensor, opposite: Tensor, *types: Tensor) -> Tensor:
        """First edge states: weights of both directions, which channels are there, and the connection's type."""
        weights = self._edge_weights(forward.shape[-1])
        return forward @ weights[0] + backward @ weights[1] + self._fixed_edges(present, opposite, *types)

    def _fixed_edges(self, present: Tensor, opposite: Tensor, *types: Tensor) -> Tensor:
        """Terms of first edge states from the declaration and masks: without a models axis of their own."""
        weights = self._edge_weights(present.shape[-1])
        return present @ weights[2] + opposite @ weights[3] + self.edge_in.bias + self._types(*types)

    def _edge_weights(self, channels: int) -> list[Tensor]:
        """Weights (channel, edge_dim) of both directions of a connection, and of which channels are there in each."""
        roles = len(ROW_ROLES)
        first, more = (weight.split(roles, dim=1) for weight in (self.edge_in.weight, self.edge_more))
        if channels == roles:
            return [weight.T for weight in first]
        return [torch.cat(slots, dim=1).T for slots in zip(first, more, strict=True)]

    def _types(self, edge_type: Tensor, edge_type_reverse: Tensor) -> Tensor:
        types: Tensor = self.edge_type(edge_type + 1) + self.edge_type_reverse(edge_type_reverse + 1)
        return types

    def _nodes(self, values: Tensor, roles: Tensor, where: Layout | Data, size: Tensor) -> Tensor:
        """First node states: biases by role, and what the declaration says of a node."""
        return values @ self._node_weights(values.shape[-1]) + self._fixed_nodes(roles, where, size)

    def _fixed_nodes(self, roles: Tensor, where: Layout | Data, size: Tensor) -> Tensor:
        """Terms of first node states from the declaration: identity of ordered nodes, kind, layer, nonlinearity."""
        roles = roles.to(self.node_in.weight.dtype)
        position = where.position.clamp(min=0)[:, None].to(roles.dtype)
        ordered = (where.position >= 0)[:, None].to(roles.dtype)
        angle = position * torch.pi / 2.0 ** torch.arange(self.num_frequencies, device=roles.device)
        identity = torch.cat([torch.sin(angle), torch.cos(angle), torch.ones_like(angle[:, :1])], dim=1) * ordered
        slot = len(ROW_ROLES)
        known = torch.cat([roles[:, :slot], identity, torch.log(size)[:, None]], dim=1)
        x = known @ self.node_in.weight[:, slot:].T + self.node_in.bias
        if roles.shape[-1] > slot:
            x = x + roles[:, slot:] @ self.node_more[:, slot:].T
        layer = where.layer if isinstance(where, Layout) else where.node_layer
        declared: Tensor = self.kind(where.kind) + self.node_layer(layer) + self.nonlinearity(where.nonlinearity)
        return x + declared

    def _node_weights(self, channels: int) -> Tensor:
        """Weights (channel, node_dim) of biases by role."""
        slot = len(ROW_ROLES)
        first, more = self.node_in.weight[:, :slot], self.node_more[:, :slot]
        return (first if channels == slot else torch.cat([first, more], dim=1)).T

    def _embed(self, topology: Topology, e: Tensor, x: Tensor, kind: Tensor, edge_type: Tensor) -> Tensor:
        kinds = F.one_hot(kind, len(NODE_KINDS)).to(x.dtype)
        types = F.one_hot(edge_type + 1, len(EDGE_TYPES) + 1)[..., 1:].to(x.dtype)
        for layer in self.layers:
            e, x = layer(topology, e, x, kinds)
        values = [topology.pool_nodes(torch.cat([x, x.square()], dim=-1), kinds)]
        values.append(topology.pool_edges(torch.cat([e, e.square()], dim=-1), types))
        embeddings: Tensor = self.head(torch.cat(values, dim=-1))
        return embeddings


def _surroundings(topology: Dense, where: Layout, like: Tensor) -> Surroundings:
    """The parts of a stack's graphs that hold whatever the weights, in the dtype of `like`."""
    return Surroundings(
        absent=topology.absent[..., 0],
        degree=topology.degree[..., 0],
        of_kind={name: (where.kind == number).to(like.dtype) for number, name in enumerate(NODE_KINDS)},
        classes=(where.kind, where.edge_type),
        class_sizes=(len(NODE_KINDS), len(EDGE_TYPES)),
    )
