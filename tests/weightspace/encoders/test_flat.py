"""The perceptron on padded weights, against the padded tensors written out, and the places that it pads to."""

import pytest
import torch

from tests.weightspace.encoders.models import fitted, stack_of
from weightspace.encoders.flat import Flat
from weightspace.encoders.graph_level import declared_of
from weightspace.encoders.places import Places
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.wave_rnn import WaveRNN
from weightspace.graph import CHANNELS, EDGE_TYPES, dense_graphs

FAMILIES = [
    GRU(input_size=3, hidden_size=4, output_size=2, num_layers=2),
    CPRNN(input_size=2, hidden_size=3, output_size=1, rank=4),
    Elman(input_size=1, hidden_size=5, output_size=1, nonlinearity="relu"),
]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_first_layer_is_a_sum_over_all_padded_places(family):
    torch.manual_seed(0)
    stack = stack_of(family, models=3)
    encoder = fitted(Flat(width=6, max_hidden=6, max_inputs=3, max_outputs=2, max_factors=4, max_pairs=0), stack)
    graphs, place = encoder.scales(dense_graphs(*stack.effective)), encoder.places.of(family.spec)
    units, where = encoder.places.units, graphs.layout
    width = encoder.connection.shape[1]
    expected = encoder.first(encoder.declared(declared_of(where)[None, None])).expand(3, -1)
    for values, side in ((graphs.edges, 0), (graphs.present.expand_as(graphs.edges), 1)):
        padded = torch.zeros(3, units, units, CHANNELS, dtype=torch.float64)
        padded[:, place[:, None], place[None, :], : values.shape[-1]] = values * where.edge_roles
        kind = torch.zeros(units, units, dtype=torch.long)
        kind[place[:, None], place[None, :]] = where.edge_type.clamp(min=0)
        gain = encoder.gain[side][kind]
        weight = encoder.connection.reshape(units, units, width)
        expected = expected + torch.einsum("mijc,ijck,ijk->mk", padded, gain, weight)
    for values, side in ((graphs.nodes, 0), (where.node_roles.expand_as(graphs.nodes), 1)):
        padded = torch.zeros(3, units, CHANNELS, dtype=torch.float64)
        padded[:, place, : values.shape[-1]] = values.double()
        kind = torch.zeros(units, dtype=torch.long)
        kind[place] = where.kind
        gain, weight = encoder.unit_gain[side][kind], encoder.unit[:units]
        expected = expected + torch.einsum("mic,ick,ik->mk", padded, gain, weight)
    found = encoder._first(*stack.effective)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_weights_have_unit_root_mean_square_by_type_after_standardisation():
    stack = stack_of(FAMILIES[0], models=20)
    encoder = fitted(Flat(), stack)
    graphs = encoder.scales(dense_graphs(*stack.effective))
    for name in ("recurrent", "self", "input", "layer", "output"):
        for channel in range(graphs.edges.shape[-1]):
            chosen = graphs.layout.edge_roles[graphs.layout.edge_type == EDGE_TYPES.index(name)][:, channel] > 0
            if chosen.any():
                values = graphs.edges[:, graphs.layout.edge_type == EDGE_TYPES.index(name), channel][:, chosen]
                torch.testing.assert_close(values.square().mean().item(), 1.0, rtol=1e-6, atol=0)


def test_units_of_all_axes_have_places_of_their_own():
    most = {"input": 3, "output": 3, "factor": 12, "hidden": 5, "layers": 2, "pairs": 60}
    for family in (*FAMILIES, WaveRNN(input_size=1, hidden_size=3, output_size=2, sites=5)):
        places = Places(most).of(family.spec)
        assert len(set(places.tolist())) == len(places)
        assert int(places.max()) < Places(most).sources


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Elman(input_size=1, hidden_size=33, output_size=1), r"Elman has 33 hidden units, .*`max_hidden` 33 or more"),
        (Elman(input_size=9, hidden_size=3, output_size=1), r"has 9 inputs, but this Flat reads 8 .*`max_inputs` 9"),
        (Elman(input_size=1, hidden_size=3, output_size=17), r"has 17 outputs, .*`max_outputs` 17 or more"),
        (CPRNN(input_size=1, hidden_size=3, output_size=1, rank=9), r"has 9 factors, .*`max_factors` 9 or more"),
        (Elman(input_size=1, hidden_size=3, output_size=1, num_layers=3), r"has 3 layers, .*`max_layers` 3 or more"),
        (WaveRNN(input_size=1, hidden_size=9, output_size=1, sites=5), r"has 77 pairs of units .*`max_pairs` 77"),
    ],
    ids=str,
)
def test_models_beyond_the_padding_are_refused_by_name(family, message):
    encoder = Flat()
    with pytest.raises(ValueError, match=message):
        encoder([stack_of(family, models=1)])


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"`hidden` \(=0\) must be at least 1"):
        Flat(max_hidden=0)
    with pytest.raises(ValueError, match=r"`width` \(=0\) must be from 1 to"):
        Flat(width=0)
