"""One round of message passing, written against `Topology`: it runs on dense stacks and on edge lists."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightspace.declaration import NODE_KINDS
from weightspace.encoders.topology import Topology


class Layer(nn.Module):
    """One round: edges hear their ends, their opposites and their products; nodes hear their edges."""

    def __init__(self, edge_dim: int, node_dim: int, product_dim: int) -> None:
        super().__init__()
        self.widths = [edge_dim, edge_dim, product_dim, product_dim]
        self.edge = nn.Linear(edge_dim, sum(self.widths), bias=False)
        self.product = nn.Linear(product_dim, edge_dim)
        self.source = nn.Linear(node_dim, 2 * edge_dim)
        self.target = nn.Linear(node_dim, edge_dim, bias=False)
        self.context = nn.Linear(node_dim, node_dim, bias=False)
        aggregated = 4 * edge_dim
        self.node = nn.Sequential(
            nn.LayerNorm(node_dim + aggregated),
            nn.Linear(node_dim + aggregated, node_dim),
            nn.SiLU(),
            nn.Linear(node_dim, node_dim),
        )
        # Edge states are not negative: rows that sum to 0 do not see the mean of their channels, whose matrix products
        # would grow with the number of nodes and outweigh those of weights.
        with torch.no_grad():
            self.edge.weight.sub_(self.edge.weight.mean(1, keepdim=True))

    def forward(self, topology: Topology, e: Tensor, x: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Next edge and node states; `kinds` is each node's one-hot of `NODE_KINDS`."""
        direct, opposite, a, b = self.edge(e).split(self.widths, dim=-1)
        drive, modulation = self.source(x).chunk(2, dim=-1)
        update = self.product(topology.product(a, b))
        update = update.add_(direct).add_(topology.reverse(opposite)).add_(topology.from_targets(self.target(x)))
        e = e + torch.relu(update.add_(topology.silence(topology.from_sources(drive))))
        message = e * topology.from_sources(modulation)
        heard = [topology.mean(message), topology.maximum(message), topology.diagonal(e)]
        heard.append(self._multiply(topology, message, kinds))
        everyone = topology.to_nodes(self.context(topology.pool_nodes(x, torch.ones_like(kinds[:, :1]))))
        return e, x + everyone + self.node(torch.cat([x, *heard], dim=-1))

    def _multiply(self, topology: Topology, message: Tensor, kinds: Tensor) -> Tensor:
        """At factor nodes, what comes from states times what comes from inputs; 0 elsewhere."""
        by_kind = dict(zip(NODE_KINDS, kinds.unbind(-1), strict=True))
        product = topology.total(message, by_kind["hidden"]) * topology.total(message, by_kind["input"])
        return product * by_kind["factor"][..., None]
