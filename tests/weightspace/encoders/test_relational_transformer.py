"""Relational attention against its equation pair by pair."""

import pytest
import torch

from tests.weightspace.encoders.models import fitted, stack_of
from weightspace.encoders.relational_transformer import CHUNK, Layer, RelationalTransformer
from weightspace.families.elman import Elman

SMALL = {"embedding_dim": 6, "node_dim": 8, "edge_dim": 4, "num_layers": 2, "num_heads": 2}


def test_attention_that_is_multiplied_out_is_attention_pair_by_pair():
    torch.manual_seed(0)
    layer = Layer(node_dim=6, edge_dim=3, num_heads=2).double()
    f, y = torch.randn(2, 5, 5, 3, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    f.requires_grad_()
    nodes, edges = layer.node_terms(y).unflatten(-1, (3, 2, 3)), layer.edge_terms(f).unflatten(-1, (3, 2, 3))
    expected = torch.zeros(2, 5, 2, 3, dtype=torch.float64)
    for model in range(2):
        for head in range(2):
            for i in range(5):
                q = nodes[model, i, 0, head] + edges[model, i, :, 0, head]
                k = nodes[model, :, 1, head] + edges[model, i, :, 1, head]
                v = nodes[model, :, 2, head] + edges[model, i, :, 2, head]
                attention = ((q * k).sum(-1) / 3**0.5).softmax(0)
                expected[model, i, head] = attention @ v
    expected, found = layer.out(expected.flatten(2)), layer.attend(f, y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(x.square().sum(), f, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_models_in_chunks_are_embedded_as_each_alone():
    stack = stack_of(Elman(input_size=1, hidden_size=4, output_size=1), models=CHUNK["cpu"] + 3)
    encoder = fitted(RelationalTransformer(**SMALL), stack)
    alone = [encoder([type(stack)(stack.family, {k: v[[i]] for k, v in stack.params.items()}, stack.rows[[i]])])
             for i in range(len(stack))]  # fmt: skip
    torch.testing.assert_close(encoder([stack]), torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`node_dim` \(=10\) must be divisible by `num_heads` \(=4\)"):
        RelationalTransformer(node_dim=10)
    with pytest.raises(ValueError, match=r"`edge_dim` \(=0\) must be from 1 to"):
        RelationalTransformer(edge_dim=0)
    deep = stack_of(Elman(input_size=1, hidden_size=2, output_size=1, num_layers=9), models=1)
    with pytest.raises(ValueError, match=r"9 layers, but this RelationalTransformer reads 8 .*`max_layers` 9"):
        RelationalTransformer(**SMALL)([deep])
