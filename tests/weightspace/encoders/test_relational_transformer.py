"""Relational attention against its equation pair by pair, and summaries that enter at the head."""

import pytest
import torch

from tests.weightspace.encoders.models import fitted, permuted, stack_of
from weightspace.encoders.graph_level import Standardised, Summaries
from weightspace.encoders.relational_transformer import CHUNK, Layer, RelationalTransformer
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.summaries import NUM_SUMMARIES, summaries_of

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


def test_summaries_enter_the_head_and_keep_the_symmetry():
    torch.manual_seed(0)
    stacks = [stack_of(GRU(input_size=2, hidden_size=4, output_size=2)), stack_of(Elman(input_size=1, hidden_size=5,
              output_size=1, nonlinearity="relu"))]  # fmt: skip
    encoder = fitted(RelationalTransformer(**SMALL, summaries=True), *stacks)
    reference = encoder(stacks)
    moved = encoder([permuted(stack) for stack in stacks])
    assert (moved - reference).abs().max() / reference.std() < 1e-10
    encoder.summaries.columns.mean.add_(1.0)
    assert (encoder(stacks) - reference).abs().max() / reference.std() > 1e-3
    plain = RelationalTransformer(**SMALL)
    more = sum(p.numel() for p in encoder.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 2 * NUM_SUMMARIES * SMALL["embedding_dim"]


def test_summaries_are_standardised_with_a_flag_and_zero_where_a_model_has_none():
    stack = stack_of(GRU(input_size=2, hidden_size=4, output_size=2), models=50)
    summaries = Summaries().double()
    summaries.add(stack)
    summaries.settle()
    values, flags = summaries(stack).chunk(2, dim=1)
    known = ~summaries_of(stack).isnan()
    assert torch.equal(flags > 0, known)
    assert (values[~known] == 0).all()
    raw = torch.sinh(values)
    varied = known.all(0) & (raw.std(0) > 0.5)
    assert varied.sum() > 50
    torch.testing.assert_close(raw[:, varied].mean(0), torch.zeros(int(varied.sum())).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(raw[:, varied].std(0, correction=0), torch.ones(int(varied.sum())).double(), rtol=1e-6,
                               atol=0)  # fmt: skip


def test_standardisation_learns_from_parts_what_it_learns_from_all_and_leaves_constants_alone():
    torch.manual_seed(0)
    values = torch.randn(30, 3, 2, dtype=torch.float64) * 5 + 2
    values[:, 1] = 0.1
    values[::2, 2] = torch.nan
    whole, parts = Standardised(3, 2).double(), Standardised(3, 2).double()
    whole.add(values)
    for part in values.split(7):
        parts.add(part)
    whole.settle()
    parts.settle()
    torch.testing.assert_close(parts.scale, whole.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.mean[0], values[:, 0].mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.scale[2], values[1::2, 2].std(0, correction=0), rtol=1e-6, atol=0)
    assert (whole.scale[1] == 1).all()
    found = whole(values)
    assert found[:, 6:].tolist() == [[1, 1, row % 2] for row in range(30)]
    assert found.isfinite().all()


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`node_dim` \(=10\) must be divisible by `num_heads` \(=4\)"):
        RelationalTransformer(node_dim=10)
    with pytest.raises(ValueError, match=r"`edge_dim` \(=0\) must be from 1 to"):
        RelationalTransformer(edge_dim=0)
    deep = stack_of(Elman(input_size=1, hidden_size=2, output_size=1, num_layers=9), models=1)
    with pytest.raises(ValueError, match=r"9 layers, but this RelationalTransformer reads 8 .*`max_layers` 9"):
        RelationalTransformer(**SMALL)([deep])
