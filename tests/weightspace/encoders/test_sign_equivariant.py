"""Exact signed permutations: features carry the declared parities, and embeddings see neither signs nor orders."""

import copy
import math

import pytest
import torch

from tests.members import EXAMPLES
from tests.weightspace.encoders.models import TRIALS, fitted, permuted, stack_of
from weightspace.encoders import sign_equivariant
from weightspace.encoders.parities import parities_of
from weightspace.encoders.parity_layers import (
    FittedScale,
    ParityActivation,
    ParityLayer,
    edge_product,
    heard,
    kinds_of,
    loops,
    node_product,
    outer,
    pair_kinds_of,
    reverse,
)
from weightspace.encoders.sign_equivariant import SignEquivariant
from weightspace.families.cprnn import CPRNN
from weightspace.families.gru import GRU
from weightspace.families.lru import LRU
from weightspace.families.lstm import LSTM
from weightspace.families.second_order import SecondOrder
from weightspace.graph import dense_graphs, layout, pair_name
from weightspace.rollout import generator
from weightspace.rows import channel_of
from weightspace.spec import GroupElement
from weightspace.store import Stack
from weightspace.violations import wrong_charges

SMALL = {"embedding_dim": 8, "edge_dim": 6, "node_dim": 12, "product_dim": 4, "num_layers": 2}
FAMILIES = EXAMPLES + TRIALS
SIGNED = [GRU(input_size=1, hidden_size=3, output_size=1), LSTM(input_size=1, hidden_size=3, output_size=1)]
SOME = [
    *SIGNED,
    CPRNN(input_size=1, hidden_size=3, output_size=1, rank=2),
    LRU(input_size=1, hidden_size=3, output_size=1),
    SecondOrder(input_size=2, hidden_size=3, output_size=1),
]


def made():
    torch.manual_seed(0)
    return SignEquivariant(**SMALL)


def flipped(stack: Stack) -> Stack:
    """Every model with random signs of its own on every gauge that has signs."""
    spec = stack.family.spec
    element = spec.random_elements(len(stack), generator(2, "flipped", "signs"), torch.float64)
    in_place = {axis: torch.arange(p.shape[1]).expand_as(p) for axis, p in element.permutations.items()}
    signs = {name: factor.sign() for name, factor in element.gauges.items()}
    return Stack(stack.family, spec.act_stacked(GroupElement(in_place, signs), stack.params), stack.rows)


def change(encoder, moved, stack):
    with torch.no_grad():
        reference = encoder([stack])
        return ((encoder([moved]) - reference).abs().max() / reference.std()).item()


@pytest.mark.parametrize("family", [*SOME, *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES)], ids=str)
def test_signs_and_permutations_leave_embeddings_alone_in_float64(family):
    assert made().symmetry == {"permutation", "sign"}
    stack = stack_of(family)
    encoder = fitted(made(), stack)
    assert change(encoder, flipped(stack), stack) < 1e-10
    assert change(encoder, permuted(flipped(stack)), stack) < 1e-10


def test_signs_change_no_bit_in_float32():
    for family in (GRU(input_size=2, hidden_size=4, output_size=2), LSTM(input_size=2, hidden_size=4, output_size=2)):
        stack = stack_of(family, dtype=torch.float32)
        encoder = made().eval()
        encoder.fit_standardisation([stack])
        assert torch.equal(encoder([flipped(stack)]), encoder([stack]))


@pytest.mark.parametrize("family", [*SIGNED, *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES)], ids=str)
def test_the_charge_of_another_gate_and_every_other_wrong_sign_are_seen(family):
    stack = stack_of(family)
    encoder = fitted(made(), stack)
    signs = tuple(f"gauge {name} " for name, gauge in family.spec.gauges.items() if gauge.kind == "sign")
    for move, broken in wrong_charges(family.spec):
        if move.startswith(signs):
            assert change(encoder, Stack(family, broken(stack.params), stack.rows), stack) > 1e-3, move


def test_parities_of_gates_are_their_charges():
    family = LSTM(input_size=1, hidden_size=2, output_size=1)
    parities, offsets = parities_of(family.spec), layout(family.spec).offsets
    hidden = offsets["hidden.0"]
    assert parities.num == 2
    for name, role in zip(("i", "f", "g", "o"), family.roles, strict=True):
        channel = channel_of(role, 0)
        recurrent = parities.edges[:, :, hidden, hidden, channel].amax((2, 3))
        from_input = parities.edges[:, :, hidden, offsets["input"], channel].amax((2, 3))
        biases = parities.nodes[:, hidden, channel].amax(1)
        target = int(name == "g")
        assert recurrent.nonzero().tolist() == [[target, 1]]
        assert from_input.nonzero().tolist() == [[target, 0]]
        assert biases.nonzero().tolist() == [[target]]
    read = parities.edges[:, :, offsets["output"], hidden, channel_of("drive", 0)].amax((2, 3))
    assert read.nonzero().tolist() == [[0, 1]]


def signs_of_parities(spec, element, num):
    """Signs (parity, models, node) of features of every parity, the gauges of a unit in the order of their names."""
    by_nodes = {axis: [f.sign() for name, f in sorted(element.gauges.items()) if name.endswith(f"@{axis}")]
                for axis in layout(spec).offsets if axis in spec.axes}  # fmt: skip
    for _, _, (a, b) in spec.products():
        first = [s.repeat_interleave(spec.axes[b].size, dim=1) for s in by_nodes[a]]
        by_nodes[pair_name(a, b)] = first + [s.repeat(1, spec.axes[a].size) for s in by_nodes[b]]
    signs = torch.ones(num, 2, len(layout(spec).kind), dtype=torch.float64)
    for nodes, factors in by_nodes.items():
        for parity in range(num):
            for bit, factor in enumerate(factors):
                if parity >> bit & 1:
                    signs[parity, :, layout(spec).offsets[nodes]] *= factor
    return signs


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_weight_moves_by_the_signs_of_its_parity(family):
    spec, params = stack_of(family, models=2).effective
    element = spec.random_elements(2, generator(3, "moved", "signs"), torch.float64)
    signs = GroupElement({}, {name: factor.sign() for name, factor in element.gauges.items()})
    graphs, moved = (dense_graphs(spec, one) for one in (params, spec.act_stacked(signs, params)))
    parities = parities_of(spec).to(graphs.edges)
    by_parity = signs_of_parities(spec, element, parities.num)
    free = 1 if graphs.layout.constant is None else 1 - graphs.layout.constant
    weights = graphs.edges * free
    expected = torch.einsum("pqijc,pmi,qmj,mijc->mijc", parities.edges, by_parity, by_parity, weights)
    assert torch.equal(expected, moved.edges * free)
    assert torch.equal(torch.einsum("pic,pmi,mic->mic", parities.nodes, by_parity, graphs.nodes), moved.nodes)
    # Connections of weight 1 do not move: where they have a parity, both ends have the same signs.
    joined = torch.einsum("pqijc,pmi,qmj->pqmijc", parities.edges * (1 - free), by_parity, by_parity)
    assert (joined >= 0).all()


def test_units_with_two_gauges_have_four_parities():
    assert parities_of(CPRNN(input_size=1, hidden_size=2, output_size=1, rank=2).spec).num == 4
    family = LRU(input_size=1, hidden_size=2, output_size=1)
    parities, offsets = parities_of(family.effective_spec), layout(family.effective_spec).offsets
    part = parities.edges[:, :, offsets["hidden"], offsets["input"]].amax((2, 3))
    # Gauges are `conjugate` and `scale`: the real row has the second, the imaginary one both.
    assert part[..., channel_of("drive", 0)].nonzero().tolist() == [[2, 0]]
    assert part[..., channel_of("other", 0)].nonzero().tolist() == [[3, 0]]


@pytest.mark.parametrize("num", [1, 2, 4])
def test_operations_are_sums_over_nodes_and_parities_written_out(num):
    torch.manual_seed(0)
    e, f = torch.randn(2, num * num, 2, 3, 3, 2, dtype=torch.float64)
    x, y = torch.randn(2, num, 2, 3, 2, dtype=torch.float64)
    by = e.unflatten(0, (num, num)), f.unflatten(0, (num, num))
    product, message, loop, nodes = torch.zeros_like(by[0]), torch.zeros_like(x), torch.zeros_like(x), x * 0
    for p in range(num):
        for q in range(num):
            nodes[p ^ q] += x[p] * y[q]
            loop[p ^ q] += torch.stack([by[0][p, q, :, i, i] for i in range(3)], dim=1)
            message[p] += torch.einsum("mijc,mjc->mic", by[0][p, q], x[q]) / math.sqrt(3)
            for r in range(num):
                product[p, r] += torch.einsum("mikc,mkjc->mijc", by[0][p, q], by[1][q, r]) / math.sqrt(3)
            torch.testing.assert_close(outer(x, y)[p * num + q], x[p][:, :, None] * y[q][:, None])
            torch.testing.assert_close(reverse(e, num)[p * num + q], by[0][q, p].transpose(1, 2))
    torch.testing.assert_close(node_product(x, y), nodes)
    torch.testing.assert_close(loops(e, num), loop)
    torch.testing.assert_close(heard(e, x), message)
    torch.testing.assert_close(edge_product(e, f, num), product.flatten(0, 1))


@pytest.mark.parametrize("num", [2, 4])
def test_a_layer_moves_every_feature_by_the_signs_of_its_parity(num):
    torch.manual_seed(0)
    layer = ParityLayer(edge_dim=4, node_dim=6, product_dim=3).double()
    e = torch.randn(num * num, 2, 5, 5, 4, dtype=torch.float64)
    x = torch.randn(num, 2, 5, 6, dtype=torch.float64)
    signs = 1.0 - 2 * torch.randint(2, (num.bit_length() - 1, 2, 5), dtype=torch.float64)
    by_parity = torch.stack([torch.stack([s if p >> bit & 1 else s.abs() for bit, s in enumerate(signs)]).prod(0)
                             for p in range(num)])  # fmt: skip
    on_nodes = by_parity[..., None]
    on_edges = outer(on_nodes, on_nodes)
    moved_e, moved_x = layer(on_edges * e, on_nodes * x)
    e, x = layer(e, x)
    torch.testing.assert_close(moved_e, on_edges * e, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved_x, on_nodes * x, rtol=1e-12, atol=1e-12)
    assert (moved_x - x).abs().max() > 0.1


def test_even_features_pass_silu_and_others_an_odd_function():
    torch.manual_seed(0)
    activation, x = ParityActivation(3), torch.randn(4, 5, 3)
    moved = torch.cat([x[:1], -x[1:]])
    torch.testing.assert_close(activation(x)[0], torch.nn.functional.silu(x[0]))
    assert torch.equal(activation(moved)[1:], -activation(x)[1:])


def test_scales_are_root_mean_squares_of_what_passed_while_they_listened():
    torch.manual_seed(0)
    scale, x = FittedScale(2, 3), torch.randn(4, 5, 7, 3) * torch.tensor([1.0, 2.0, 5.0])
    x[3] = 0
    kinds = kinds_of(4)
    scale(x, kinds)
    assert (scale.scale == 1).all()
    scale.listening = True
    for part in x.split(2, dim=1):
        scale(part, kinds)
    scale.settle()
    expected = torch.stack([x[0].square().mean((0, 1)).sqrt(), x[1:3].square().mean((0, 1, 2)).sqrt()])
    torch.testing.assert_close(scale.scale, expected)
    torch.testing.assert_close(scale(x, kinds)[1], x[1] / expected[1])
    assert pair_kinds_of(2).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_embeddings_of_models_spread_alike_whatever_the_scale_of_their_weights(size):
    stack = stack_of(GRU(input_size=1, hidden_size=8, output_size=1), models=16)
    scaled = Stack(stack.family, {name: size * value for name, value in stack.params.items()}, stack.rows)
    spread = [fitted(made(), one)([one]).std(0).mean() for one in (stack, scaled)]
    assert spread[0] > 0.01
    torch.testing.assert_close(*spread, rtol=1e-6, atol=0)


def test_scales_are_buffers_that_a_copy_keeps():
    stack = stack_of(EXAMPLES[0])
    encoder, fresh = fitted(made(), stack), made().double().eval()
    assert not torch.equal(fresh([stack]), encoder([stack]))
    fresh.load_state_dict(copy.deepcopy(encoder.state_dict()))
    assert torch.equal(fresh([stack]), encoder([stack]))


def test_models_in_chunks_are_embedded_as_each_alone(monkeypatch):
    stacks = [stack_of(family, models=5) for family in SOME[::2]]
    encoder = fitted(made(), *stacks)
    together = encoder(stacks)
    # A GRU of this size has 25 pairs of nodes: two models at a time, and one of the last.
    monkeypatch.setattr(sign_equivariant, "NODE_PAIRS_TOGETHER", 50)
    torch.testing.assert_close(encoder(stacks), together, rtol=1e-12, atol=1e-12)


def test_what_it_cannot_be_made_with_or_read_is_refused():
    with pytest.raises(ValueError, match=r"`edge_dim` \(=0\) must be from 1 to"):
        SignEquivariant(edge_dim=0)
    deep = GRU(input_size=1, hidden_size=2, output_size=1, num_layers=2)
    with pytest.raises(ValueError, match=r"2 layers, but this SignEquivariant reads 1 .*`max_layers` 2"):
        SignEquivariant(**SMALL, max_layers=1)([stack_of(deep, models=1)])
