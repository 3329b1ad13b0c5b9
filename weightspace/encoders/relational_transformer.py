"""Attention over neurons with edge features, and edges that are updated by their ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.graph_encoder import DenseEncoder
from weightspace.encoders.pooling import class_means, one_hot_kinds, one_hot_types, read_out
from weightspace.encoders.scales import WeightScales
from weightspace.graph import CHANNELS, EDGE_TYPES, DenseGraphs, Layout, dense_graphs
from weightspace.store import Stack

CHUNK = {"cpu": 8, "cuda": 256}
"""Models encoded at a time, by device: on the CPU their edge fields stay in the cache."""


class RelationalTransformer(DenseEncoder):
    """Attention over all neurons of a model, in which every pair has a state; invariant to permutations.

    Queries, keys and values are sums of a node's and an edge's term (Diao & Loynd, Relational attention, ICLR 2023,
    arXiv 2210.05062; over neural graphs: Kofinas et al., ICLR 2024, arXiv 2403.12143), for the pair of target i and
    source j: q_ij = Q x_i + Q' e_ij, k_ij = K x_j + K' e_ij, v_ij = V x_j + V' e_ij; x_i hears sum_j a_ij v_ij with
    a_ij = softmax_j(q_ij k_ij / sqrt(d)); then e_ij hears itself, e_ji, x_i and x_j. First edge states hold the weights
    of both directions, which of them exist, and the types of both, absent ones included.
    Models of more than `max_layers` layers, `max_ends` inputs or outputs or 1024 product nodes are refused.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        node_dim: int = 64,
        edge_dim: int = 16,
        num_layers: int = 3,
        num_heads: int = 4,
        summaries: bool = False,
        max_layers: int = 8,
        max_ends: int = 256,
    ) -> None:
        sizes = {"node_dim": node_dim, "edge_dim": edge_dim, "num_layers": num_layers, "num_heads": num_heads}
        super().__init__(embedding_dim, sizes, max_layers, max_ends, summaries)
        if node_dim % num_heads:
            raise ValueError(f"`node_dim` (={node_dim}) must be divisible by `num_heads` (={num_heads}).")
        self.numbers_per_pair = 2 * CHANNELS + (6 + num_heads) * edge_dim + 4 * num_heads
        self.scales = WeightScales()
        self.edge_in = nn.Linear(4 * CHANNELS, edge_dim)
        self.embed_types(edge_dim)
        self.node_in = nn.Linear(2 * CHANNELS + 1, node_dim)
        self.embed_nodes(node_dim, max_layers)
        self.position = nn.Embedding(max_ends + 1, node_dim)
        self.layers = nn.ModuleList(Layer(node_dim, edge_dim, num_heads) for _ in range(num_layers))
        pooled = 2 * len(NODE_KINDS) * node_dim + 2 * len(EDGE_TYPES) * edge_dim
        self.norm = nn.LayerNorm(pooled)
        self.head = read_out(self.read_width(pooled), embedding_dim, embedding_dim, norm=False)

    def pooled(self, stack: Stack) -> Tensor:
        """Normalised pooled states (models, ...)."""
        graphs = self.scales(dense_graphs(*stack.effective))
        states: Tensor = self.norm(torch.cat([self._pooled(chunk) for chunk in _chunks(graphs)]))
        return states

    def _pooled(self, graphs: DenseGraphs) -> Tensor:
        """Means of states and of their squares (models, ...), of nodes by kind and of edges by type."""
        where = graphs.layout
        e, x = self._edges(graphs), self._nodes(graphs)
        for layer in self.layers:
            e, x = layer(e, x)
        kinds, types = one_hot_kinds(where.kind, x), one_hot_types(where.edge_type.flatten(), x)
        e = e.flatten(1, 2)
        means = [(x, kinds), (x.square(), kinds), (e, types), (e.square(), types)]
        return torch.cat([class_means(values, classes) for values, classes in means], dim=1)

    def _edges(self, graphs: DenseGraphs) -> Tensor:
        """First edge states (models, node, node, edge_dim) as [target, source]."""
        where, used = graphs.layout, graphs.edges.shape[-1]
        weight = self.edge_in.weight.unflatten(1, (4, CHANNELS))[..., :used].movedim(1, 0).mT
        fixed = graphs.present @ weight[2] + graphs.present.transpose(1, 2) @ weight[3] + self.edge_in.bias
        fixed = fixed + self.edge_type(where.edge_type + 1) + self.edge_type_reverse(where.edge_type.T + 1)
        edges: Tensor = graphs.edges @ weight[0] + graphs.edges.transpose(1, 2) @ weight[1] + fixed
        return edges

    def _nodes(self, graphs: DenseGraphs) -> Tensor:
        """First node states (models, node, node_dim)."""
        where: Layout = graphs.layout
        missing = CHANNELS - graphs.nodes.shape[-1]
        size = graphs.nodes.new_full((where.kind.shape[0], 1), where.kind.shape[0]).log()
        fixed = torch.cat([F.pad(where.node_roles.to(size.dtype), (0, missing)), size], dim=1)
        values = F.pad(graphs.nodes, (0, missing))
        x = self.node_in(torch.cat([values, fixed.expand(len(values), -1, -1)], dim=-1))
        learned = self.node_terms(where.kind, where.layer, where.nonlinearity)
        state: Tensor = x + learned + self.position(where.position + 1)
        return state


class Layer(nn.Module):
    """One round of relational attention: nodes hear all pairs that they are the target of, pairs hear their ends."""

    def __init__(self, node_dim: int, edge_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, node_dim // num_heads
        self.edge_norm, self.node_norm = nn.LayerNorm(edge_dim), nn.LayerNorm(node_dim)
        self.node_terms = nn.Linear(node_dim, 3 * node_dim)
        self.edge_terms = nn.Linear(edge_dim, 3 * node_dim, bias=False)
        self.out = nn.Linear(node_dim, node_dim)
        self.node_update = nn.Sequential(
            nn.LayerNorm(node_dim), nn.Linear(node_dim, 2 * node_dim), nn.SiLU(), nn.Linear(2 * node_dim, node_dim)
        )
        self.end_norm = nn.LayerNorm(node_dim)
        self.from_edge = nn.Linear(edge_dim, 2 * edge_dim)
        self.from_reverse = nn.Linear(edge_dim, 2 * edge_dim, bias=False)
        self.from_target = nn.Linear(node_dim, 2 * edge_dim, bias=False)
        self.from_source = nn.Linear(node_dim, 2 * edge_dim, bias=False)
        self.edge_out = nn.Linear(2 * edge_dim, edge_dim)

    def forward(self, e: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Next states of edges (models, node, node, edge_dim) and nodes (models, node, node_dim)."""
        f = self.edge_norm(e)
        x = x + self.attend(f, self.node_norm(x))
        x = x + self.node_update(x)
        y = self.end_norm(x)
        heard = self.from_edge(f) + self.from_reverse(f).transpose(1, 2)
        heard = heard + self.from_target(y)[:, :, None] + self.from_source(y)[:, None]
        return e + self.edge_out(torch.relu(heard)), x

    def attend(self, f: Tensor, y: Tensor) -> Tensor:
        """What nodes hear (models, node, node_dim), from normalised states of edges and nodes.

        q_ij k_ij is multiplied out into node by node, edge by node, node by edge and edge by edge, so that no field is
        wider than the last of them, and values of edges are averaged before they are mapped.
        """
        heads = (self.num_heads, self.head_dim)
        q, k, v = self.node_terms(y).unflatten(-1, (3, *heads)).unbind(2)
        to_q, to_k, to_v = self.edge_terms.weight.unflatten(0, (3, *heads))
        scores = torch.einsum("mihd,mjhd->mijh", q, k)
        scores = scores + f @ torch.einsum("mihd,hdc->mich", q, to_k)
        scores = scores + (f.transpose(1, 2) @ torch.einsum("mjhd,hdc->mjch", k, to_q)).transpose(1, 2)
        both = torch.einsum("hdc,hdg->chg", to_q, to_k).flatten(1)
        scores = scores + ((f @ both).unflatten(-1, (self.num_heads, -1)) * f[..., None, :]).sum(-1)
        attention = (scores / self.head_dim**0.5).softmax(dim=2)
        heard = torch.einsum("mijh,mjhd->mihd", attention, v)
        heard = heard + torch.einsum("mihc,hdc->mihd", attention.mT @ f, to_v)
        mapped: Tensor = self.out(heard.flatten(2))
        return mapped


def _chunks(graphs: DenseGraphs) -> Iterator[DenseGraphs]:
    together = CHUNK.get(graphs.edges.device.type, CHUNK["cpu"])
    parts = [graphs.edges.split(together), graphs.nodes.split(together)]
    shared = graphs.present.shape[0] == 1
    present = [graphs.present] * len(parts[0]) if shared else graphs.present.split(together)
    for edges, nodes, there in zip(*parts, present, strict=True):
        yield replace(graphs, edges=edges, nodes=nodes, present=there)
