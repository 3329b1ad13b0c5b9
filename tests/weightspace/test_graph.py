"""The graph of a recurrent model, dense and as PyG Data."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from tests.members import EXAMPLES, ONE_OF_EACH
from weightspace import checks, encoders
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.graph import EDGE_TYPES, dense_graphs, layout, to_data
from weightspace.rollout import generator
from weightspace.spec import ROW_ROLES, Axis, TensorSpec, WeightSpec
from weightspace.store import Stack


def stack(family, models: int = 3) -> Stack:
    draws = [family.spec.random_params(generator(0, str(i), "params"), torch.float32) for i in range(models)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(models))


def graphs_of(models: Stack) -> list[Data]:
    spec, params = models.effective
    return [to_data(spec, {k: v[i] for k, v in params.items()}) for i in range(len(models.rows))]


def test_an_elman_graph_has_every_declared_edge_in_both_directions_and_its_own_self_loops():
    family = Elman(input_size=2, hidden_size=3, output_size=1)
    params = family.spec.random_params(generator(0, "m", "params"), torch.float32)
    data = to_data(family.spec, params)
    assert data.num_nodes == 2 + 1 + 3
    assert data.edge_index.shape[1] == 3 * 3 + 2 * (3 * 2) + 2 * (1 * 3)
    counts = {t: int((data.edge_type == i).sum()) for i, t in enumerate(EDGE_TYPES)}
    assert counts == {**dict.fromkeys(EDGE_TYPES, 0), "recurrent": 6, "self": 3, "input": 6, "output": 3}
    where, drive = layout(family.spec).offsets, ROW_ROLES.index("drive")
    for source, target, forward, backward in zip(
        *data.edge_index.tolist(), data.edge_attr[:, drive], data.edge_attr_reverse[:, drive], strict=True
    ):
        hidden = where["hidden.0"].start
        if min(source, target) >= hidden and max(source, target) < where["hidden.0"].stop:
            assert forward == params["weight_hh.0"][target - hidden, source - hidden]
            assert backward == params["weight_hh.0"][source - hidden, target - hidden]
    assert torch.equal(data.x[where["hidden.0"], drive], params["bias.0"])


def test_gates_are_channels_and_an_exact_zero_is_still_an_edge():
    family = GRU(input_size=1, hidden_size=2, output_size=1)
    params = family.spec.random_params(generator(0, "m", "params"), torch.float32)
    params["weight_hh.0"][0] = 0
    graphs = dense_graphs(family.spec, {k: v[None] for k, v in params.items()})
    hidden = graphs.layout.offsets["hidden.0"]
    for row, role in enumerate(family.spec.tensors["weight_hh.0"].row_roles):
        channel = ROW_ROLES.index(role)
        assert torch.equal(graphs.edges[0, hidden, hidden, channel], params["weight_hh.0"][row])
        assert (graphs.present[0, hidden, hidden, channel] == 1).all()


def test_a_masked_connection_is_absent_whatever_its_value():
    spec = WeightSpec(
        axes={"hidden": Axis(size=2, kind="hidden", permutable=True)},
        tensors={
            "weight_hh": TensorSpec(axes=("hidden", "hidden"), mask="mask"),
            "mask": TensorSpec(axes=("hidden", "hidden"), role="mask"),
        },
        states={"h": "hidden"},
    )
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    data = to_data(spec, {"weight_hh": torch.ones(2, 2), "mask": mask})
    assert data.edge_index.tolist() == [[0, 1], [0, 1]]


def test_factors_are_nodes():
    family = CPRNN(input_size=1, hidden_size=2, output_size=1, rank=3)
    data = to_data(family.spec, family.init(generator(0, "m", "init")))
    counts = {t: int((data.edge_type == i).sum()) for i, t in enumerate(EDGE_TYPES)}
    assert (counts["factor_state"], counts["factor_input"], counts["factor_out"]) == (6, 3, 6)


def diagonal_spec(mask: str | None = None) -> WeightSpec:
    return WeightSpec(
        axes={"hidden": Axis(size=3, kind="hidden", permutable=True)},
        tensors={
            "weight_hh": TensorSpec(axes=("hidden",), diagonal=True, mask=mask),
            "bias": TensorSpec(axes=("hidden",)),
            "mask": TensorSpec(axes=("hidden",), role="mask"),
        },
        states={"h": "hidden"},
        recurrence="diagonal",
    )


def test_a_diagonal_joins_each_unit_to_itself_alone():
    params = {"weight_hh": torch.tensor([1.0, 2.0, 0.0]), "bias": torch.tensor([5.0, 6.0, 7.0]), "mask": torch.ones(3)}
    data, drive = to_data(diagonal_spec(), params), ROW_ROLES.index("drive")
    assert data.edge_index.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert data.edge_attr[:, drive].tolist() == [1.0, 2.0, 0.0]
    assert data.edge_type.tolist() == [EDGE_TYPES.index("self")] * 3
    assert data.x[:, drive].tolist() == [5.0, 6.0, 7.0]


def test_a_masked_entry_of_a_diagonal_is_absent():
    params = {"weight_hh": torch.ones(3), "bias": torch.zeros(3), "mask": torch.tensor([1.0, 0.0, 1.0])}
    assert to_data(diagonal_spec("mask"), params).edge_index.tolist() == [[0, 2], [0, 2]]


def test_a_diagonal_has_one_node_axis():
    with pytest.raises(ValueError, match="'weight_hh' is declared a diagonal"):
        WeightSpec(
            axes={"hidden": Axis(size=2, kind="hidden")},
            tensors={"weight_hh": TensorSpec(axes=("hidden", "hidden"), diagonal=True)},
            states={"h": "hidden"},
        )


def gated(*roles: str, diagonal: str | None = None) -> WeightSpec:
    gate, hidden = Axis(size=len(roles), kind="channel"), Axis(size=2, kind="hidden", permutable=True)
    tensors = {"weight_hh": TensorSpec(axes=("gate", "hidden", "hidden"), row_roles=roles)}
    if diagonal is not None:
        tensors["peephole"] = TensorSpec(axes=("hidden",), row_roles=(diagonal,), diagonal=True)
    return WeightSpec(axes={"gate": gate, "hidden": hidden}, tensors=tensors, states={"h": "hidden"})


def test_two_rows_of_one_role_on_one_connection_have_slots_of_their_own():
    spec = gated("gate", "drive", "gate", diagonal="drive")
    params = {"weight_hh": torch.arange(12.0).reshape(1, 3, 2, 2), "peephole": torch.tensor([[100.0, 101.0]])}
    edges = dense_graphs(spec, params).edges[0]
    gate, drive, second = ROW_ROLES.index("gate"), ROW_ROLES.index("drive"), len(ROW_ROLES)
    assert edges[..., gate].flatten().tolist() == [0, 1, 2, 3]
    assert edges[..., drive].flatten().tolist() == [4, 5, 6, 7]
    assert edges[..., second + gate].flatten().tolist() == [8, 9, 10, 11]
    assert edges[..., second + drive].flatten().tolist() == [100, 0, 0, 101]


@pytest.mark.parametrize(("roles", "diagonal"), [(("gate",) * 3, None), (("gate", "gate"), "gate")])
def test_a_third_row_of_one_role_on_one_connection_is_refused(roles, diagonal):
    with pytest.raises(ValueError, match=r"Row role 'gate' of '.*' is taken: 2 rows"):
        layout(gated(*roles, diagonal=diagonal))


def second_order() -> WeightSpec:
    return WeightSpec(
        axes={"input": Axis(size=2, kind="input"), "hidden": Axis(size=3, kind="hidden", permutable=True)},
        tensors={
            "weight_hhi": TensorSpec(axes=("hidden", "hidden", "input"), mask="mask"),
            "mask": TensorSpec(axes=("hidden", "hidden", "input"), role="mask"),
        },
        states={"h": "hidden"},
    )


def test_a_tensor_with_three_node_axes_joins_a_node_for_each_product_of_two_units():
    params = {"weight_hhi": torch.arange(1.0, 19).reshape(3, 3, 2), "mask": torch.ones(3, 3, 2)}
    params["mask"][2, 1, 0] = 0
    spec, drive = second_order(), ROW_ROLES.index("drive")
    where, data = layout(spec).offsets, to_data(spec, params)
    pairs = range(where["hidden*input"].start, where["hidden*input"].stop)
    assert len(pairs) == 6
    edges = {(t, s): w for (s, t), w in zip(data.edge_index.T.tolist(), data.edge_attr[:, drive].tolist(), strict=True)}
    expected = {}
    for unit in range(3):
        for channel in range(2):
            pair = pairs[2 * unit + channel]
            for end in (where["hidden"].start + unit, where["input"].start + channel):
                expected |= {(pair, end): 1.0}
            for to in range(3):
                if (to, unit, channel) != (2, 1, 0):
                    expected[where["hidden"].start + to, pair] = params["weight_hhi"][to, unit, channel].item()
    assert {edge: weight for edge, weight in edges.items() if weight} == expected
    kinds = {t: int((data.edge_type == i).sum()) for i, t in enumerate(EDGE_TYPES)}
    # Of the masked entry, one of its 18, the connection is gone.
    assert (kinds["factor_state"], kinds["factor_input"], kinds["factor_out"]) == (6, 6, 17)


def test_an_encoder_refuses_by_name_more_product_nodes_than_it_reads():
    class Large(Elman):
        effective_spec = property(
            lambda self: WeightSpec(
                axes={"input": Axis(size=33, kind="input"), "hidden": Axis(size=32, kind="hidden", permutable=True)},
                tensors={"weight_hhi": TensorSpec(axes=("hidden", "hidden", "input"))},
                states={"h": "hidden"},
            )
        )

    with pytest.raises(ValueError, match=r"Large has 1056 pairs of units .* reads 1024 at most"):
        MessagePassing().refuse_too_large(Large(input_size=33, hidden_size=32, output_size=1))


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_the_dense_path_equals_the_sparse_path(family):
    torch.manual_seed(0)
    encoder, models = MessagePassing(), stack(family)
    encoder.fit_standardisation([models])
    graphs = graphs_of(models)
    dense, sparse = encoder([models]), encoder.forward_data(Batch.from_data_list(graphs))
    torch.testing.assert_close(dense, sparse, rtol=1e-5, atol=1e-6)


def test_a_batch_of_mixed_families_is_embedded_as_each_alone():
    torch.manual_seed(0)
    encoder = MessagePassing().eval()
    stacks = [stack(family) for family in EXAMPLES]
    graphs = [graph for s in stacks for graph in graphs_of(s)]
    alone = torch.cat([encoder([s]) for s in stacks])
    torch.testing.assert_close(encoder(stacks), alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.forward_data(Batch.from_data_list(graphs)), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoder", encoders.available().values(), ids=encoders.available())
def test_an_encoder_has_the_symmetry_it_states_and_no_more(encoder):
    untrained = checks._untrained(encoder)
    for family in ONE_OF_EACH:
        rows = list(checks._encoder_rows(untrained, family))
        assert [row for row in rows if not row["passed"]] == [], family


@pytest.mark.slow
@pytest.mark.parametrize("encoder", encoders.available().values(), ids=encoders.available())
def test_an_encoder_has_the_symmetry_it_states_for_every_example(encoder):
    torch.manual_seed(0)
    checks.assert_encoder(encoder())


def test_standardised_weights_have_unit_root_mean_square():
    encoder, models = MessagePassing(), stack(Elman(input_size=2, hidden_size=6, output_size=1), models=20)
    encoder.fit_standardisation([models])
    scale = encoder.edge_scale[EDGE_TYPES.index("self"), ROW_ROLES.index("drive")]
    diagonal = models.params["weight_hh.0"].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(scale, diagonal.square().mean().sqrt())
