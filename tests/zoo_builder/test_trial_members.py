"""Families of kinds that the library has none of: checked, encoded, trained, labelled, counted."""

import dataclasses
from math import prod

import pytest
import torch

from tests.trial_members.decays import Decays
from tests.trial_members.delays import Delays
from tests.trial_members.liquid import Liquid
from weightspace import checks, families
from weightspace.components import plugins
from weightspace.data.augment import GroupMoves, MaskEdges
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.cprnn import CPRNN
from weightspace.families.second_order import SecondOrder
from weightspace.families.wave_rnn import WaveRNN
from weightspace.features import spectra_of, statistics_of
from weightspace.objectives.completion import Completion
from weightspace.rollout import Streams, generator, native, rollout
from weightspace.store import Stack
from weightspace.summaries import NUM_SUMMARIES, summaries_of
from zoo_builder import labels
from zoo_builder.bench.case import Case, flops
from zoo_builder.learning.base import Run, fresh_params
from zoo_builder.learning.bptt import BPTT
from zoo_builder.members import Members
from zoo_builder.tasks.copy import Copy
from zoo_builder.tasks.delayed_recall import DelayedRecall

MEMBERS = [example for kind in (SecondOrder, Liquid, WaveRNN, Delays, Decays) for example in kind.examples()]
each_member = pytest.mark.parametrize("family", MEMBERS, ids=str)
TASK = DelayedRecall(num_steps=6, delay=2)
IDS = ["a", "b"]


def stack_of(family, models=3, dtype=torch.float64):
    draws = [family.spec.random_params(generator(0, str(i), "trial"), dtype) for i in range(models)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(models))


def fitting(family):
    return dataclasses.replace(family, input_size=TASK.input_size, output_size=TASK.output_size)


@each_member
def test_every_check_of_a_family_passes(family):
    checks.assert_family(family)


@each_member
def test_every_tensor_moves_the_embedding_and_no_permutation_does(family):
    rows = list(checks._encoder_rows(checks._untrained(MessagePassing), family))
    assert [row for row in rows if not row["passed"]] == []
    replaced = {row["move"].split()[1] for row in rows if row["move"].startswith("another ")}
    assert replaced == set(family.spec.tensors)
    dtypes = [row["dtype"] for row in rows if row["move"].startswith("declared permutations")]
    assert sorted(dtypes) == ["float32", "float64"]


@each_member
def test_a_family_learns_and_is_labelled(family):
    family = fitting(family)
    method = "stacked" if native.why_not(family, torch.float32) else "native"
    learned = BPTT(num_updates=3, batch_size=4, learning_rate=1e-2).learn(
        family, TASK, Members(0, IDS), [0, 3], Run(method=method)
    )
    assert (learned.diverged_step == -1).all()
    for name in family.spec.trained:
        before, after = learned.params[name].unbind(1)
        assert (before != after).any(), name
    params = {name: value[:, -1] for name, value in learned.params.items()}
    measured = labels.measure(["Rank", "Memory"], family, params, TASK, Members(0, IDS))
    for name in ("state_effective_rank", "jacobian_stable_rank", "memory_decay_rate"):
        assert measured[name].isfinite().all()


def test_members_of_which_each_step_is_made_of_products_run_in_c():
    untraceable = {type(family).__name__ for family in MEMBERS if native.why_not(family, torch.float32)}
    assert untraceable == {"Liquid"}


def test_a_package_of_ones_own_adds_them(monkeypatch):
    monkeypatch.setattr(plugins, "_allowed", {"tests.trial_members": None})
    assert {type(family) for family in MEMBERS} <= set(families.available().values())


def test_a_second_order_network_is_a_cprnn_of_full_rank():
    full = SecondOrder(input_size=2, hidden_size=3, output_size=1)
    factors = CPRNN(input_size=2, hidden_size=3, output_size=1, rank=6)
    params = stack_of(full).params
    tensor = params["weight_hhi"]
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(2))
    shared = {name: value for name, value in params.items() if name != "weight_hhi"}
    shared["factor_a"] = torch.eye(3, dtype=torch.float64)[pairs[:, 0]].expand(3, -1, -1)
    shared["factor_b"] = torch.eye(2, dtype=torch.float64)[pairs[:, 1]].expand(3, -1, -1)
    shared["factor_c"] = tensor[:, :, pairs[:, 0], pairs[:, 1]]
    x = torch.randn(3, 7, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = rollout(full, params, x).outputs, rollout(factors, shared, x).outputs
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_states_on_channels_and_sites_move_in_blocks():
    family = WaveRNN(input_size=1, hidden_size=3, output_size=1, sites=3)
    element = family.spec.identity()
    element.permutations["channel"] = torch.tensor([2, 0, 1])
    element.gauges["scale@channel"] = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)
    state = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]], dtype=torch.float64)
    moved = family.spec.act_on_state(element, {"h": state})["h"]
    assert moved.tolist() == [[7, 8, 9, 1, 2, 3, 2, 2.5, 3]]
    assert (family.spec.state_shape("h"), family.spec.state_size) == ((3, 3), 9)


@each_member
def test_states_move_along_with_params(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    element = family.spec.random_element(generator(0, "m", "element"))
    x = torch.randn(4, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    state = {name: torch.randn(4, family.spec.size_of_state(name), dtype=torch.float64) for name in family.spec.states}
    after = family.step(family.spec.act(element, params), family.spec.act_on_state(element, state), x, {})
    expected = family.spec.act_on_state(element, family.step(params, state, x, {}))
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-12, atol=1e-12)


def test_an_axis_of_states_that_is_not_declared_is_refused():
    spec = WaveRNN(input_size=1, hidden_size=3, output_size=1, sites=3).spec
    with pytest.raises(ValueError, match="Axis 'place' of the state 'h' is not declared"):
        dataclasses.replace(spec, states={"h": ("channel", "place")})


def test_coefficients_have_neither_ranks_nor_spectra_nor_a_scale():
    family = Liquid(input_size=TASK.input_size, hidden_size=4, output_size=TASK.output_size)
    assert family.spec.recurrent() == ()
    columns = labels.columns(["Rank", "Dynamics", "NonNormality"], [family.spec])
    assert not [name for name in columns if name.startswith(("w_", "mu_", "sigma_", "erev_"))]
    assert spectra_of(family.spec, stack_of(family).params) == {}
    scale = {"init_scale": torch.tensor([3.0, 3.0], dtype=torch.float64)}
    learned = BPTT(num_updates=1).learn(family, TASK, Members(0, IDS, {}, scale), [0]).params
    for name, value in fresh_params(family, 0, IDS).items():
        assert torch.equal(learned[name][:, 0], value)


def test_a_map_of_products_starts_at_the_scale_that_is_asked_for():
    family = fitting(SecondOrder.examples()[0])
    scale = {"init_scale": torch.tensor([3.0, 0.5], dtype=torch.float64)}
    learned = BPTT(num_updates=1).learn(family, TASK, Members(0, IDS, {}, scale), [0]).params
    for name, value in fresh_params(family, 0, IDS).items():
        factor = scale["init_scale"].float() if name in ("weight_hhi", "weight_hh") else torch.ones(2)
        expected = value * factor.reshape(-1, *[1] * (value.dim() - 1))
        assert torch.equal(learned[name][:, 0], expected), name


def test_statistics_and_spectra_of_a_tensor_with_three_node_axes_equal_numpy():
    family = SecondOrder.examples()[1]
    params = stack_of(family).params
    tensor, columns = params["weight_hhi"], statistics_of(family.spec, params)
    torch.testing.assert_close(columns["weight_hhi.mean"], tensor.mean((1, 2, 3)))
    spectra = spectra_of(family.spec, params)
    assert list(spectra) == [f"weight_hhi.singular.{i}" for i in range(5)]
    expected = torch.linalg.svdvals(tensor.reshape(3, 5, 15))
    torch.testing.assert_close(torch.stack(list(spectra.values()), 1), expected)
    assert summaries_of(stack_of(family)).shape == (3, NUM_SUMMARIES)


@pytest.mark.parametrize("family", [SecondOrder.examples()[0], WaveRNN.examples()[0], Liquid.examples()[0]], ids=str)
def test_masked_entries_of_all_connections_are_completed_alike_by_all_moved_models(family):
    stack, mask = stack_of(family), MaskEdges(0.4)
    torch.manual_seed(0)
    completion, embedding = Completion(4, 8).double(), torch.randn(3, 4, dtype=torch.float64)
    hidden = mask.draw(stack)
    joined = {name for name, _ in family.spec.connections() if family.spec.tensors[name].domain == "real"}
    assert set(hidden) == joined
    errors, counts = completion(stack, hidden, embedding)
    assert torch.equal(counts, sum(where.flatten(1).sum(1) for where in hidden.values()).double())
    element = family.spec.random_elements(3, generator(0, "moves", "x"), torch.float64)
    # Scales change what is predicted in units of a matrix's size.
    for name, factor in element.gauges.items():
        element.gauges[name] = factor.sign()
    moved = dataclasses.replace(stack, params=family.spec.act_stacked(element, stack.params))
    still = {name: torch.ones_like(value) for name, value in element.gauges.items()}
    reordered = dataclasses.replace(element, gauges=still)
    where = {name: hidden[name].double() if name in hidden else value for name, value in stack.params.items()}
    where = {name: value > 0.5 for name, value in family.spec.act_stacked(reordered, where).items() if name in hidden}
    torch.testing.assert_close(completion(moved, where, embedding), (errors, counts), rtol=1e-9, atol=1e-9)


def test_operations_of_maps_of_products_are_counted_and_those_of_coefficients_are_not(monkeypatch):
    monkeypatch.setattr(plugins, "_allowed", {"tests.trial_members": None})
    sizes = {"input_size": 2, "hidden_size": 4, "output_size": 3}
    count = flops(Case(family="SecondOrder", fields=sizes, models=1, batch=5, steps=7))
    # All but W_ih pass gradients on to trained tensors behind them.
    assert count == 5 * 7 * (6 * (4 * 4 * 2 + 4 * 4 + 3 * 4) + 4 * (4 * 2))
    assert flops(Case(family="Liquid", fields=sizes, models=1, batch=5, steps=7)) == 5 * 7 * 6 * 3 * 4


@pytest.mark.parametrize("family", [SecondOrder.examples()[0], Liquid.examples()[0], WaveRNN.examples()[0]], ids=str)
def test_what_autograd_keeps_of_a_model_is_within_the_estimate(family):
    task = Copy(num_symbols=6, length=5, max_delay=10)
    sizes = {"input_size": task.input_size, "output_size": task.output_size, "hidden_size": 12}
    family = dataclasses.replace(family, **sizes)
    params = {name: tensor.requires_grad_() for name, tensor in fresh_params(family, 0, IDS).items()}
    batch = task.sample({}, Streams(0, IDS, "train"), 8, "train")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        task.loss(rollout(family, params, batch.x, batch.start).outputs, batch)
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    estimate = BPTT(batch_size=8).bytes_per_model(family, task)
    assert estimate / 10 < sum(memory.values()) / len(IDS) < estimate


def test_even_params_are_read_by_their_size_and_moved_by_signs():
    stack = stack_of(Decays.examples()[0])
    moves = GroupMoves()
    moves.reseed(3)
    moved = moves(stack)
    before, after = stack.params["decay"], moved.params["decay"]
    assert torch.equal(before.abs(), after.abs())
    assert (before != after).any()
    x = torch.randn(3, 6, 2, 2, dtype=torch.float64, generator=generator(0, "m", "x"))
    found, expected = (rollout(stack.family, one.params, x).outputs for one in (moved, stack))
    torch.testing.assert_close(found, expected)
    columns = statistics_of(stack.family.spec, moved.params)
    torch.testing.assert_close(columns["decay.mean"], before.abs().mean(1))


def test_a_sign_of_an_even_param_that_the_function_sees_fails():
    class Seen(Decays):
        def step(self, params, state, x, noise):
            return super().step({**params, "decay": params["decay"].exp()}, state, x, noise)

    (failed,) = (row for row in checks.family_rows(Seen.examples()[1]) if not row["passed"])
    assert failed["move"] == "flip signs of entries of decay"


def test_a_field_says_its_least_value():
    sizes = {"input_size": 1, "hidden_size": 2, "output_size": 1}
    assert prod(Decays(**sizes, self_layers=0).spec.shape("decay")) == 2
    with pytest.raises(ValueError, match=r"`self_layers` \(=-1\) of Decays must be at least 0"):
        Decays(**sizes, self_layers=-1)
    with pytest.raises(ValueError, match=r"`hidden_size` \(=0\) of Decays must be at least 1"):
        Decays(**{**sizes, "hidden_size": 0})
