"""Summaries of weights that enter graph encoders at the head."""

import pytest
import torch

from tests.weightspace.encoders.models import fitted, permuted, stack_of
from weightspace.encoders.equivariant_linear import EquivariantLinear
from weightspace.encoders.graph_level import Standardised, Summaries
from weightspace.encoders.matrix_power import MatrixPower
from weightspace.encoders.message_passing import MessagePassing
from weightspace.encoders.relational_transformer import RelationalTransformer
from weightspace.encoders.sign_equivariant import SignEquivariant
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.summaries import NUM_SUMMARIES, summaries_of

ENCODERS = (EquivariantLinear, MatrixPower, MessagePassing, RelationalTransformer, SignEquivariant)


@pytest.mark.parametrize("kind", ENCODERS)
def test_summaries_enter_the_head_and_keep_the_symmetry(kind):
    torch.manual_seed(0)
    stacks = [stack_of(GRU(input_size=2, hidden_size=4, output_size=2)), stack_of(Elman(input_size=1, hidden_size=5,
              output_size=1, nonlinearity="relu"))]  # fmt: skip
    encoder = fitted(kind(embedding_dim=6, num_layers=1, summaries=True), *stacks)
    reference = encoder(stacks)
    moved = encoder([permuted(stack) for stack in stacks])
    assert (moved - reference).abs().max() / reference.std() < 1e-10
    encoder.summaries.columns.mean.add_(1.0)
    assert (encoder(stacks) - reference).abs().max() / reference.std() > 1e-3
    plain = kind(embedding_dim=6, num_layers=1)
    hidden = encoder.head[-1].in_features
    norm = 4 * NUM_SUMMARIES * isinstance(encoder.head[0], torch.nn.LayerNorm)
    more = sum(p.numel() for p in encoder.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 2 * NUM_SUMMARIES * hidden + norm


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
