"""The declaration and its symmetry group."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace import families
from weightspace.families.elman import Elman
from weightspace.spec import Axis, Gauge, TensorSpec, WeightSpec

EXAMPLES = [example for family in families.available().values() for example in family.examples()]
seeds = st.integers(0, 2**31 - 1)


def drawn(spec: WeightSpec, seed: int):
    source = torch.Generator().manual_seed(seed)
    return spec.random_params(source), spec.random_element(source), spec.random_element(source)


def assert_same(a: dict, b: dict) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-12)


@given(seeds, st.sampled_from(EXAMPLES))
@settings(max_examples=40, deadline=None)
def test_acting_twice_is_acting_with_the_composition(seed, family):
    params, a, b = drawn(family.spec, seed)
    twice = family.spec.act(b, family.spec.act(a, params))
    assert_same(twice, family.spec.act(b.compose(a), params))


@given(seeds, st.sampled_from(EXAMPLES))
@settings(max_examples=40, deadline=None)
def test_the_inverse_undoes_an_element(seed, family):
    params, a, _ = drawn(family.spec, seed)
    assert_same(family.spec.act(a.inverse(), family.spec.act(a, params)), params)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_the_identity_moves_nothing(family):
    params, _, _ = drawn(family.spec, 0)
    assert_same(family.spec.act(family.spec.identity(), params), params)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_the_declaration_survives_json(family):
    assert WeightSpec.from_json(family.spec.to_json()) == family.spec


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_states_move_along_with_params(family):
    params, element, _ = drawn(family.spec, 3)
    x = torch.randn(4, family.input_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = family.initial_state(params, x.new_zeros(4, 0))
    state = {k: v + 0.1 for k, v in state.items()}
    moved_params, moved_state = family.spec.act(element, params), family.spec.act_on_state(element, state)
    stepped = family.spec.act_on_state(element, family.step(params, state, x, {}))
    assert_same(family.step(moved_params, moved_state, x, {}), stepped)


def test_a_permutation_takes_rows_and_columns_together():
    spec = WeightSpec(
        axes={"hidden": Axis(size=3, kind="hidden", permutable=True)},
        tensors={"weight_hh": TensorSpec(axes=("hidden", "hidden"))},
        states={"h": "hidden"},
    )
    weight = torch.arange(9.0).reshape(3, 3)
    element = spec.identity()
    element.permutations["hidden"] = torch.tensor([2, 0, 1])
    moved = spec.act(element, {"weight_hh": weight})["weight_hh"]
    assert moved.tolist() == [[8, 6, 7], [2, 0, 1], [5, 3, 4]]


def test_a_charge_per_row_scales_only_its_row():
    spec = WeightSpec(
        axes={"gate": Axis(size=2, kind="channel", names=("f", "g")), "hidden": Axis(size=1, kind="hidden")},
        tensors={"bias": TensorSpec(axes=("gate", "hidden"), row_roles=("gate", "drive"))},
        states={},
        gauges={"scale": Gauge(axis="hidden", kind="positive", charges={"bias": (0, (2, -1))})},
    )
    element = spec.identity()
    element.gauges["scale@hidden"] = torch.tensor([2.0], dtype=torch.float64)
    moved = spec.act(element, {"bias": torch.ones(2, 1, dtype=torch.float64)})["bias"]
    assert moved.tolist() == [[4.0], [0.5]]


def test_sizes_that_do_not_fit_are_refused_with_axis_and_tensor():
    spec = Elman(input_size=2, hidden_size=5, output_size=1).spec
    params = spec.random_params(torch.Generator().manual_seed(0))
    name = spec.recurrent()[0]
    params[name] = torch.zeros(7, 7)
    with pytest.raises(ValueError, match=f"'{name}' has size 7, but the declaration says"):
        spec.check(params, stacked=False)
    del params[name]
    with pytest.raises(ValueError, match=f"missing \\['{name}'\\]"):
        spec.check(params, stacked=False)


def test_an_undeclared_axis_is_refused():
    with pytest.raises(ValueError, match="Axis 'hiden' of 'w' is not declared"):
        WeightSpec(axes={"hidden": Axis(size=1, kind="hidden")}, tensors={"w": TensorSpec(axes=("hiden",))}, states={})


def test_a_tensor_without_entries_is_refused():
    axes = {"hidden": Axis(size=2, kind="hidden"), "rank": Axis(size=0, kind="factor")}
    with pytest.raises(ValueError, match="Axis 'rank' of 'w' has size 0; leave out"):
        WeightSpec(axes=axes, tensors={"w": TensorSpec(axes=("hidden", "rank"))}, states={})


@pytest.mark.parametrize(
    ("axes", "role", "mask"),
    [
        (("hidden", "input"), "mask", "mask"),
        (("hidden",), "mask", "mask"),
        (("hidden", "hidden"), "fixed", "mask"),
        (("hidden", "hidden"), "mask", "mast"),
    ],
)
def test_a_mask_without_the_axes_of_its_tensor_is_refused(axes, role, mask):
    tensors = {"w": TensorSpec(axes=("hidden", "hidden"), mask=mask), "mask": TensorSpec(axes=axes, role=role)}
    message = rf"'w' has axes \('hidden', 'hidden'\) and the mask '{mask}', but declared are the masks"
    with pytest.raises(ValueError, match=message):
        WeightSpec(axes=AXES, tensors=tensors, states={"h": "hidden"})


AXES = {
    "input": Axis(size=3, kind="input"),
    "hidden": Axis(size=5, kind="hidden", permutable=True),
    "gate": Axis(size=2, kind="channel"),
    "kind": Axis(size=2, kind="channel"),
}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("hidden", "hidden", "input", "input"), r"'w' has 4 node axes .*product of such tensors"),
        (("gate", "hidden", "hidden", "input", "input"), r"'w' has 4 node axes"),
        (("gate",), r"'w' has 0 node axes"),
        ((), r"'w' has 0 node axes"),
        (("hidden", "gate"), r"a channel axis comes first"),
        (("hidden", "gate", "input"), r"a channel axis comes first"),
        (("gate", "kind", "hidden"), r"there is at most one"),
    ],
)
@pytest.mark.parametrize("role", ["trained", "fixed", "mask"])
def test_a_tensor_that_no_reader_takes_is_refused_where_it_is_declared(axes, message, role):
    roles = ("drive", "gate") if axes[:1] == ("gate",) else ("drive",)
    with pytest.raises(ValueError, match=message):
        WeightSpec(axes=AXES, tensors={"w": TensorSpec(axes=axes, role=role, row_roles=roles)}, states={"h": "hidden"})
