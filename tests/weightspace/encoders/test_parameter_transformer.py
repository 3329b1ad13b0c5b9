"""Tokens of rows of weights, against rows written out."""

import pytest
import torch

from tests.weightspace.encoders.models import fitted, stack_of
from weightspace.declaration import NONLINEARITIES
from weightspace.encoders.parameter_transformer import ParameterTransformer
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.lstm import LSTM
from weightspace.graph import EDGE_TYPES, layout
from weightspace.rows import channel_of

SMALL = {"dim": 16, "num_layers": 1}


def test_a_token_is_a_row_its_bias_and_who_it_belongs_to():
    torch.manual_seed(0)
    stack = stack_of(Elman(input_size=2, hidden_size=3, output_size=1), models=4)
    encoder = fitted(ParameterTransformer(**SMALL), stack)
    tokens = encoder._tokens(*stack.effective)
    place, drive = encoder.places.of(stack.family.spec), channel_of("drive", 0)
    where = layout(stack.family.spec).offsets
    unit, hidden, inputs = 1, place[where["hidden.0"]], place[where["input"]]
    scale = {name: encoder.scales.edge_scale[EDGE_TYPES.index(name), drive] for name in ("input", "recurrent", "self")}
    weights, presence = encoder.row
    row = stack.params["weight_hh.0"][:, unit] / scale["recurrent"]
    row[:, unit] = stack.params["weight_hh.0"][:, unit, unit] / scale["self"]
    bias = stack.params["bias.0"][:, unit] / encoder.scales.node_scale[1, drive]
    expected = row @ weights[hidden] + (stack.params["weight_ih.0"][:, unit] / scale["input"]) @ weights[inputs]
    expected = expected + bias[:, None] * weights[-1] + presence[hidden].sum(0) + presence[inputs].sum(0)
    expected = expected + presence[-1] + encoder.position.weight[hidden[unit]] + encoder.role.weight[drive]
    expected = expected + encoder.nonlinearity.weight[NONLINEARITIES.index("tanh")]
    # The compression token comes first, and hidden units come before outputs.
    torch.testing.assert_close(tokens[:, 1 + unit], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("family", "count"),
    [
        (Elman(input_size=2, hidden_size=3, output_size=2), 3 + 2),
        (LSTM(input_size=2, hidden_size=3, output_size=2, num_layers=2), 2 * 4 * 3 + 2),
        # Three gate rows, and the bias of the n gate that the reset multiplies.
        (GRU(input_size=2, hidden_size=3, output_size=2), 4 * 3 + 2),
    ],
    ids=str,
)
def test_there_is_one_token_per_unit_and_gate_row_and_one_that_compresses(family, count):
    stack = stack_of(family, models=1)
    assert fitted(ParameterTransformer(**SMALL), stack)._tokens(*stack.effective).shape == (1, 1 + count, 16)


def test_what_it_cannot_be_made_with_or_read_is_refused():
    with pytest.raises(ValueError, match=r"`dim` \(=20\) must be a multiple of 16"):
        ParameterTransformer(dim=20)
    with pytest.raises(ValueError, match=r"17 outputs, but this ParameterTransformer reads 16 .*`max_ends` 17"):
        ParameterTransformer(**SMALL)([stack_of(Elman(input_size=1, hidden_size=3, output_size=17), models=1)])
