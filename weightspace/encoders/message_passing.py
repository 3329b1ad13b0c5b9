"""Message passing over the recurrent graph, with edge updates and channel-wise products of edge fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from weightspace.declaration import NODE_KINDS, ROW_ROLES, VOCABULARY
from weightspace.encoders.fused.availability import why_not
from weightspace.encoders.fused.packing import packed
from weightspace.encoders.fused.rounds import rounds
from weightspace.encoders.fused.stack import Surroundings, Widths
from weightspace.encoders.graph_encoder import DenseEncoder
from weightspace.encoders.layer import Layer
from weightspace.encoders.pooling import one_hot_kinds, one_hot_types, read_out
from weightspace.encoders.positions import num_codes, waves
from weightspace.encoders.scales import MeanSquares, add_graphs, divided
from weightspace.encoders.topology import Dense, Sparse, Topology
from weightspace.graph import CHANNELS, EDGE_TYPES, DenseGraphs, Layout, dense_graphs
from weightspace.store import Stack


class MessagePassing(DenseEncoder):
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
        summaries: bool = False,
    ) -> None:
        sizes = {"edge_dim": edge_dim, "node_dim": node_dim, "product_dim": product_dim, "num_layers": num_layers}
        super().__init__(embedding_dim, sizes, max_layers, max_ends, summaries)
        self.widths = Widths(edge_dim, node_dim, product_dim, num_layers)
        self.numbers_per_pair = 2 * CHANNELS + 8 * edge_dim + 5 * product_dim
        self.num_codes, roles = num_codes(max_ends), len(ROW_ROLES)
        self.register_buffer("vocabulary", torch.tensor(VOCABULARY))
        self.register_buffer("edge_scale", torch.ones(len(EDGE_TYPES), CHANNELS))
        self.register_buffer("node_scale", torch.ones(len(NODE_KINDS), CHANNELS))
        self.edge_in = nn.Linear(4 * roles, edge_dim)
        self.embed_types(edge_dim)
        self.node_in = nn.Linear(2 * roles + self.num_codes + 1, node_dim)
        self.embed_nodes(node_dim, max_layers)
        self.start_from_weights(self.edge_in, 2 * roles)
        # Weights of slot 1 start as those of slot 0 in another order: so they take no draws from the stream of slot 0.
        self.edge_more = nn.Parameter(self.edge_in.weight.detach().flip(0).clone())
        self.node_more = nn.Parameter(self.node_in.weight[:, : 2 * roles].detach().flip(0).clone())
        self.layers = nn.ModuleList(Layer(edge_dim, node_dim, product_dim) for _ in range(num_layers))
        pooled = 2 * len(NODE_KINDS) * node_dim + 2 * len(EDGE_TYPES) * edge_dim
        self.head = read_out(self.read_width(pooled), 2 * embedding_dim, embedding_dim, dropout=dropout)

    edge_scale: Tensor
    node_scale: Tensor

    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Root mean square of training weights by (connection type, channel) and (node kind, channel), as buffers."""
        sums = MeanSquares(self.edge_scale), MeanSquares(self.node_scale)
        for stack in stacks:
            add_graphs(dense_graphs(*stack.effective), *sums, constants=True)
            if self.summaries is not None:
                self.summaries.add(stack)
        for scale in sums if self.summaries is None else (*sums, self.summaries):
            scale.settle()

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of stacks, by the dense path."""
        weights: dict[int, Tensor] = {}
        pooled = [self._pooled(dense_graphs(*stack.effective), weights) for stack in stacks]
        return self.embedded(torch.cat(pooled), stacks)

    def pooled(self, stack: Stack) -> Tensor:
        """Invariants (models, ...) of the models of a stack."""
        return self._pooled(dense_graphs(*stack.effective), {})

    def forward_data(self, batch: Data) -> Tensor:
        """Embeddings (models, embedding_dim) of a PyG batch of `graph.to_data` graphs, by the sparse path."""
        if self.summaries is not None:
            raise ValueError("Summaries are of stacks, not of graphs; give stacks, or train without `summaries`.")
        graph = batch.batch if isinstance(batch, Batch) else torch.zeros_like(batch.kind)
        present, opposite = batch.edge_present, batch.edge_present_reverse
        forward = batch.edge_attr / self.edge_scale[batch.edge_type]
        backward = batch.edge_attr_reverse / self.edge_scale[batch.edge_type_reverse]
        e = torch.relu(self._edges(forward, backward, present, opposite, batch.edge_type, batch.edge_type_reverse))
        topology = Sparse(batch.edge_index, graph)
        size = torch.bincount(graph)[graph].to(batch.x.dtype)
        x = self._nodes(batch.x / self.node_scale[batch.kind], batch.node_roles, batch, size)
        embeddings: Tensor = self.head(self._after_rounds(topology, e, x, batch.kind, batch.edge_type))
        return embeddings

    def _pooled(self, graphs: DenseGraphs, weights: dict[int, Tensor]) -> Tensor:
        """Invariants of one stack; `weights` keeps the packed ones by number of channels, for the next stack."""
        where, present, opposite = graphs.layout, graphs.present, graphs.present.transpose(1, 2)
        edges, nodes = divided(graphs, self.edge_scale, self.node_scale, constants=True)
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
            return self._over_present(pooled, topology, where)
        e = torch.relu(topology.silence(self._edges(edges, edges.transpose(1, 2), present, opposite, *types)))
        x = self._nodes(nodes, where.node_roles, where, size)
        return self._after_rounds(topology, e, x, where.kind, where.edge_type)

    def _over_present(self, pooled: Tensor, topology: Dense, where: Layout) -> Tensor:
        """Pooled states whose edges are means over declared ones, as means over those that masks leave."""
        if topology.present.shape[0] == 1:
            return pooled
        nodes, edges = pooled.split([2 * len(NODE_KINDS) * self.widths.node, 2 * len(EDGE_TYPES) * self.widths.edge], 1)
        per_edge = topology.declared_per_edge(one_hot_types(where.edge_type, pooled))[..., None]
        return torch.cat([nodes, (edges.unflatten(1, (len(EDGE_TYPES), -1)) * per_edge).flatten(1)], dim=1)

    def _edges(self, forward: Tensor, backward: Tensor, present: Tensor, opposite: Tensor, *types: Tensor) -> Tensor:
        """First edge states: weights of both directions, which channels are there, and the connection's type."""
        weights = self._edge_weights(forward.shape[-1])
        return forward @ weights[0] + backward @ weights[1] + self._fixed_edges(present, opposite, *types)

    def _fixed_edges(self, present: Tensor, opposite: Tensor, *types: Tensor) -> Tensor:
        """Terms of first edge states from the declaration and masks: without a models axis of their own."""
        weights = self._edge_weights(present.shape[-1])
        return present @ weights[2] + opposite @ weights[3] + self.edge_in.bias + self.type_terms(*types)

    def _edge_weights(self, channels: int) -> list[Tensor]:
        """Weights (channel, edge_dim) of both directions of a connection, and of which channels are there in each."""
        roles = len(ROW_ROLES)
        first, more = (weight.split(roles, dim=1) for weight in (self.edge_in.weight, self.edge_more))
        if channels == roles:
            return [weight.T for weight in first]
        return [torch.cat(slots, dim=1).T for slots in zip(first, more, strict=True)]

    def _nodes(self, values: Tensor, roles: Tensor, where: Layout | Data, size: Tensor) -> Tensor:
        """First node states: biases by role, and what the declaration says of a node."""
        return values @ self._node_weights(values.shape[-1]) + self._fixed_nodes(roles, where, size)

    def _fixed_nodes(self, roles: Tensor, where: Layout | Data, size: Tensor) -> Tensor:
        """Terms of first node states from the declaration: identity of ordered nodes, kind, layer, nonlinearity."""
        roles = roles.to(self.node_in.weight.dtype)
        position = where.position.clamp(min=0)[:, None].to(roles.dtype)
        ordered = (where.position >= 0)[:, None].to(roles.dtype)
        identity = waves(position, self.num_codes) * ordered
        slot = len(ROW_ROLES)
        known = torch.cat([roles[:, :slot], identity, torch.log(size)[:, None]], dim=1)
        x = known @ self.node_in.weight[:, slot:].T + self.node_in.bias
        if roles.shape[-1] > slot:
            x = x + roles[:, slot:] @ self.node_more[:, slot:].T
        layer = where.layer if isinstance(where, Layout) else where.node_layer
        return x + self.node_terms(where.kind, layer, where.nonlinearity)

    def _node_weights(self, channels: int) -> Tensor:
        """Weights (channel, node_dim) of biases by role."""
        slot = len(ROW_ROLES)
        first, more = self.node_in.weight[:, :slot], self.node_more[:, :slot]
        return (first if channels == slot else torch.cat([first, more], dim=1)).T

    def _after_rounds(self, topology: Topology, e: Tensor, x: Tensor, kind: Tensor, edge_type: Tensor) -> Tensor:
        """Invariants (models, ...): means of states and of their squares, of nodes by kind and of edges by type."""
        kinds, types = one_hot_kinds(kind, x), one_hot_types(edge_type, x)
        for layer in self.layers:
            e, x = layer(topology, e, x, kinds)
        values = [topology.pool_nodes(torch.cat([x, x.square()], dim=-1), kinds)]
        values.append(topology.pool_edges(torch.cat([e, e.square()], dim=-1), types))
        return torch.cat(values, dim=-1)


def _surroundings(topology: Dense, where: Layout, like: Tensor) -> Surroundings:
    """The parts of a stack's graphs that hold whatever the weights, in the dtype of `like`."""
    return Surroundings(
        absent=topology.absent[..., 0],
        degree=topology.degree[..., 0],
        of_kind={name: (where.kind == number).to(like.dtype) for number, name in enumerate(NODE_KINDS)},
        classes=(where.kind, where.edge_type),
        class_sizes=(len(NODE_KINDS), len(EDGE_TYPES)),
    )
