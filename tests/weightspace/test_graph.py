"""The graph of a recurrent model, dense and as PyG Data."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from weightspace import encoders, families
from weightspace.checks import encoder_rows
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.graph import EDGE_TYPES, dense_graphs, layout, to_data
from weightspace.rollout import generator
from weightspace.spec import ROW_ROLES, Axis, TensorSpec, WeightSpec
from weightspace.store import Stack

EXAMPLES = [example for family in families.available().values() for example in family.examples()]


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


def test_two_rows_of_one_role_on_one_connection_are_refused():
    spec = WeightSpec(
        axes={"gate": Axis(size=2, kind="channel"), "hidden": Axis(size=2, kind="hidden", permutable=True)},
        tensors={"weight_hh": TensorSpec(axes=("gate", "hidden", "hidden"), row_roles=("gate", "gate"))},
        states={"h": "hidden"},
    )
    with pytest.raises(ValueError, match="Row role 'gate' of 'weight_hh' is taken"):
        layout(spec)


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


@pytest.mark.parametrize(("label", "encoder"), encoders.available().items())
def test_an_encoder_has_the_symmetry_it_states_and_no_more(label, encoder):
    torch.manual_seed(0)
    assert [row for row in encoder_rows(label, encoder()) if not row["passed"]] == []


def test_standardised_weights_have_unit_root_mean_square():
    encoder, models = MessagePassing(), stack(Elman(input_size=2, hidden_size=6, output_size=1), models=20)
    encoder.fit_standardisation([models])
    scale = encoder.edge_scale[EDGE_TYPES.index("self"), ROW_ROLES.index("drive")]
    diagonal = models.params["weight_hh.0"].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(scale, diagonal.square().mean().sqrt())
