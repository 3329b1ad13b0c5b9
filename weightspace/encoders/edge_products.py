"""Products of edge states as matrices, channel by channel, along two connections that meet at a node set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightspace.encoders.fields import Fields, Pair
from weightspace.encoders.lifts import States
from weightspace.graph import EDGE_TYPES


class EdgeProducts(nn.Module):
    """Weights of p_ij = sum over nodes k of (e_ik A * e_kj B) C / sqrt(nodes k), shared by connection type.

    * multiplies channels. Edges (i, k) and (k, j) are of any two declared pairs of node sets, and (i, j) of a third:
    W_hh W_hh for the units of a layer, W_ho W_hh for its outputs. Traces of cubes and higher powers need such products:
    linear maps with pointwise functions between them see two units at a time (Maron et al., NeurIPS 2019, arXiv
    1905.11136).

    Shapes: edge states (models, to, from, edge_dim) of pairs -> the same.
    """

    def __init__(self, edge_dim: int, product_dim: int) -> None:
        super().__init__()
        types = len(EDGE_TYPES)
        self.first = nn.Parameter(torch.randn(types, edge_dim, product_dim) / edge_dim**0.5)
        self.second = nn.Parameter(torch.randn(types, edge_dim, product_dim) / edge_dim**0.5)
        self.out = nn.Parameter(torch.randn(types, product_dim, edge_dim) / (2 * product_dim) ** 0.5)

    def over(self, fields: Fields) -> Products:
        """The products of the fields of one declaration, to be used for as many models as there are."""
        return Products(self, fields)


class Products:
    """The products of `EdgeProducts` between the fields of one declaration."""

    def __init__(self, products: EdgeProducts, fields: Fields) -> None:
        pairs = [(nodes[0], nodes[1]) for nodes in fields.types if len(nodes) == 2]
        self.sizes = {axis: nodes.size for axis, nodes in fields.sets.items()}
        self.weights = {
            pair: tuple(bank[fields.types[pair]] for bank in (products.first, products.second, products.out))
            for pair in pairs
        }
        through = {
            (to, source): [middle for middle in self.sizes if (to, middle) in pairs and (middle, source) in pairs]
            for to, source in pairs
        }
        self.through = {pair: middles for pair, middles in through.items() if middles}

    def __call__(self, states: States) -> dict[Pair, Tensor]:
        factors: tuple[dict[Pair, Tensor], dict[Pair, Tensor]] = ({}, {})
        for pair, (*both, _) in self.weights.items():
            for of_pair, weight in zip(factors, both, strict=True):
                of_pair[pair] = _centred(states, pair, weight)
        first, second = factors
        products = {}
        for (to, source), middles in self.through.items():
            terms = [first[to, k] @ second[k, source] / self.sizes[k] ** 0.5 for k in middles]
            product = sum(terms[1:], start=terms[0])
            products[to, source] = product.permute(0, 2, 3, 1) @ self.weights[to, source][2]
        return products


def _centred(states: States, pair: Pair, weight: Tensor) -> Tensor:
    """Mixed channels (models, product channel, to, from) less their mean over the edges that are there.

    The mean of all entries is a matrix of rank 1 that grows with the number of nodes and hides what differs.
    """
    e, present = states.edges[pair] @ weight, states.present.get(pair)
    if present is None:
        return (e - e.mean((1, 2), keepdim=True)).permute(0, 3, 1, 2)
    mean = (e * present).sum((1, 2), keepdim=True) / present.sum((1, 2), keepdim=True).clamp(min=1)
    return ((e - mean) * present).permute(0, 3, 1, 2)
