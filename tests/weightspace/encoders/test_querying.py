"""Encoders that query: symmetry, the queries' kind and range, what is read of responses, and what they refuse."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml

from tests.members import EXAMPLES
from tests.trial_members.liquid import Liquid
from tests.weightspace.encoders.models import TRIALS, fitted, permuted, stack_of
from tests.weightspace.zoos import write_zoo
from weightspace import checks, encoders
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.activities import correlations, statistics, trajectories
from weightspace.encoders.queried_graph import QueriedGraph
from weightspace.encoders.queries import SHARPNESS, as_inputs
from weightspace.encoders.querying import Querying
from weightspace.encoders.responses import MET, POINTS, ask, continued, paired, start_size
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.lstm import LSTM
from weightspace.graph import layout
from weightspace.objectives.supervised import Supervised
from weightspace.recipes import recipe
from weightspace.rollout import generator
from weightspace.spec import Axis, TensorSpec, WeightSpec
from weightspace.store import Stack, TaskIO
from weightspace.training.embed import embed_rows, load
from weightspace.training.module import EmbeddingModule, fit

SMALL = {"embedding_dim": 8, "num_queries": 3, "num_steps": 8}
MADE = {
    "static": lambda: Querying(mode="static", width=16, reader_dim=8, **SMALL),
    "deep_linear": lambda: Querying(mode="deep_linear", width=16, reader_dim=8, **SMALL),
    "interactive": lambda: Querying(mode="interactive", width=16, reader_dim=8, **SMALL),
    "graph": lambda: QueriedGraph(node_dim=8, **SMALL),
}
FAMILY = GRU(input_size=2, hidden_size=5, output_size=3)
TOKENS = TaskIO(input_kind="one_hot", input_range=(0.0, 1.0), input_size=2, output_kind="categorical")
VALUES = TaskIO(input_kind="values", input_range=(2.0, 5.0), input_size=2, output_kind="continuous")


def made(name):
    torch.manual_seed(0)
    return MADE[name]()


def stack_with(io=None, family=FAMILY, models=3):
    return dataclasses.replace(stack_of(family, models), io=io)


def asked(family=FAMILY, models=2, lanes=3, steps=12, kick=3):
    stack = stack_of(family, models)
    x = torch.randn(models, steps, lanes, family.input_size, generator=generator(0, "x", "tests"), dtype=torch.float64)
    second = torch.randn(models, lanes, family.input_size, generator=generator(1, "x", "tests"), dtype=torch.float64)
    return ask(stack, paired(x, second, kick), kick)


def moved(stack, seed=0):
    element = stack.family.spec.random_elements(len(stack), generator(seed, "moved", "units"), torch.float64)
    return dataclasses.replace(stack, params=stack.family.spec.act_stacked(element, stack.params))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["static", "deep_linear", "interactive"])
def test_no_declared_move_changes_an_embedding_by_more_than_rounding(name):
    assert made(name).symmetry == {"permutation", "sign", "scale"}
    stacks = [stack_of(family) for family in (EXAMPLES if name == "static" else EXAMPLES[::4])]
    # Scales of several families, as of a zoo: readings in which four models hardly differ would be all rounding.
    encoder = fitted(made(name), *stacks)
    for stack in stacks:
        with torch.no_grad():
            reference = encoder([stack])
            change = (encoder([moved(stack)]) - reference).abs().max() / reference.std()
        assert change < 1e-10, stack.family


@pytest.mark.slow
def test_permutations_leave_embeddings_of_queried_graphs_alone():
    assert made("graph").symmetry == {"permutation"}
    # A membrane of tens of millivolts that varies by a few loses digits; float32 rows check it, below.
    for family in EXAMPLES[::2] + [trial for trial in TRIALS if not isinstance(trial, Liquid)]:
        stack = stack_of(family)
        torch.manual_seed(0)
        encoder = fitted(QueriedGraph(node_dim=8, max_inputs=64, max_outputs=64, **SMALL), stack)
        with torch.no_grad():
            reference = encoder([stack])
            change = (encoder([permuted(stack)]) - reference).abs().max() / reference.std()
        assert change < 1e-10, family


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep_linear", "graph"])
def test_every_tensor_of_families_of_all_kinds_is_seen(name):
    for family in (*EXAMPLES[::5], *TRIALS):
        rows = list(checks._encoder_rows(made(name), family))
        assert len(rows) > 1
        assert [row for row in rows if not row["passed"]] == []


@pytest.mark.parametrize("name", MADE)
def test_mixed_families_and_sizes_are_embedded_as_each_alone(name):
    stacks = [stack_of(family, models=2) for family in EXAMPLES[::3]]
    encoder = fitted(made(name), *stacks)
    with torch.no_grad():
        alone = torch.cat([encoder([stack]) for stack in stacks])
        torch.testing.assert_close(encoder(stacks), alone, rtol=1e-10, atol=1e-10)


def test_queries_are_of_the_kind_and_in_the_range_that_the_task_declares():
    raw = 3 * torch.randn(7, 4, 5)
    tokens, values, unknown = (as_inputs(raw, stack_with(io)) for io in (TOKENS, VALUES, None))
    expected = torch.exp(SHARPNESS * raw[..., :2].double())
    torch.testing.assert_close(tokens, expected / expected.sum(-1, keepdim=True))
    torch.testing.assert_close(values, 2 + 3 / (1 + torch.exp(-raw[..., :2].double())))
    torch.testing.assert_close(unknown, torch.tanh(raw[..., :2].double() / 2))


@pytest.mark.parametrize("name", MADE)
def test_a_declared_range_reaches_the_models(name):
    encoder = fitted(made(name), stack_with())
    (of_values,), _ = encoder.interview.ask([stack_with(VALUES)])
    (of_tokens,), _ = encoder.interview.ask([stack_with(TOKENS)])
    assert 2 < of_values.inputs.min() < 3 < 4 < of_values.inputs.max() < 5
    torch.testing.assert_close(of_tokens.inputs.sum(-1), torch.ones_like(of_tokens.inputs[..., 0]))


def test_what_was_said_is_a_rollout_of_what_was_asked():
    """The interactive interview asks step by step; the whole sequence at once gives the same."""
    encoder, stacks = fitted(made("interactive"), stack_with()), [stack_with(), stack_with(family=EXAMPLES[0])]
    responses, _ = encoder.interview.ask(stacks)
    for stack, one in zip(stacks, responses, strict=True):
        whole = continued(stack, one.inputs.detach(), None, "sequential")
        torch.testing.assert_close(one.outputs, whole.outputs, rtol=1e-10, atol=1e-12)
        for name, state in whole.states.items():
            torch.testing.assert_close(one.states[name], state, rtol=1e-10, atol=1e-12)
        main, other = one.inputs.chunk(2, dim=2)
        differ = (main != other).flatten(2).any(2).any(0)
        assert differ.nonzero().flatten().tolist() == [one.kick] == [2]


def test_interactive_queries_depend_on_the_model_and_static_ones_do_not():
    stack = stack_with()
    for name in ("static", "deep_linear", "interactive"):
        (responses,), _ = fitted(made(name), stack).interview.ask([stack])
        alike = torch.equal(responses.inputs[0], responses.inputs[1])
        assert alike == (name != "interactive")
        # The first question comes before the first answer.
        assert torch.equal(responses.inputs[0, 0], responses.inputs[1, 0])


def test_deep_linear_queries_are_a_matrix_times_their_codes():
    queries = made("deep_linear").interview.queries.double()
    product = torch.linalg.multi_dot([one.weight for one in reversed(list(queries.generator))])
    torch.testing.assert_close(queries(), (queries.codes @ product.T).reshape(3, 9, 16).transpose(0, 1))


@pytest.mark.parametrize("name", MADE)
def test_gradients_reach_every_parameter_and_queries_by_finite_differences(name):
    stack = stack_with(VALUES)
    encoder = fitted(made(name), stack)
    weights = torch.randn(3, 8, generator=generator(0, "w", "tests"), dtype=torch.float64)
    if name == "graph":
        # Activities pass no gradient: what is read of the whole model does.
        encoder.node_in.weight.data.zero_()
        for one in encoder.rounds:
            one.values.data.zero_()

    def loss():
        return (encoder([stack]) * weights).sum()

    loss().backward()
    codes = encoder.interview.queries.codes
    assert all(p.grad is not None for p in encoder.parameters())
    for place in ((0, 0), (1, 5), (2, 3)):
        step = 1e-6
        with torch.no_grad():
            codes[place] += step
            above = loss()
            codes[place] -= 2 * step
            below = loss()
            codes[place] += step
        np.testing.assert_allclose(codes.grad[place], (above - below) / (2 * step), rtol=1e-5, atol=1e-8)


def test_readings_of_a_step_are_those_of_numpy():
    responses = asked()
    h, readings = responses.states["h.0"].numpy(), responses.per_step[:, :, :, 1].numpy()
    for model, t, query in ((0, 5, 0), (1, 11, 2), (1, 3, 1)):
        main, other = h[model, t, query], h[model, t, query + 3]
        before, others = h[model, t - 1, query], h[model, t, :3].mean(0)
        distance = np.mean((main - other) ** 2) / np.mean(h[model, :, :3] ** 2)
        expected = [
            np.log(np.mean(main**2)) / 2,
            main @ before / np.linalg.norm(main) / np.linalg.norm(before),
            main @ others / np.linalg.norm(main) / np.linalg.norm(others),
            np.log(distance + MET) / 2,
        ]
        np.testing.assert_allclose(readings[model, t, query], expected, rtol=1e-10)
    assert np.isnan(readings[:, :3, :, 3]).all()
    assert np.isfinite(readings[:, :3, :, :3]).all()


def test_geometry_is_the_spectrum_and_rank_of_the_covariance_of_states():
    responses = asked(lanes=4)
    h, geometry = responses.states["h.0"].numpy(), responses.geometry[:, 1].numpy()
    for model in range(2):
        states = h[model, 3:, :4].reshape(-1, 5)
        shares = np.linalg.eigvalsh(np.cov(states.T, bias=True))[::-1]
        total = shares.sum()
        shares = shares / total
        expected = np.interp(np.linspace(0, 4, POINTS), np.arange(5), np.log(5 * shares + 1e-4))
        np.testing.assert_allclose(geometry[model, :POINTS], expected, rtol=1e-9)
        np.testing.assert_allclose(geometry[model, POINTS], np.exp(-shares @ np.log(shares)) / 5, rtol=1e-9)
        np.testing.assert_allclose(geometry[model, POINTS + 1], np.log(total / 5) / 2, rtol=1e-9)


def test_the_distance_of_a_pair_falls_by_the_eigenvalue_of_a_linear_model_at_each_step():
    """h' = relu(a h + x) with positive inputs is linear: an input is forgotten at the rate -ln a."""
    family = Elman(input_size=1, hidden_size=1, output_size=1, nonlinearity="relu")
    params = {name: torch.ones(1, *family.spec.shape(name), dtype=torch.float64) for name in family.spec.tensors}
    params["weight_hh.0"] = params["weight_hh.0"] * 0.6
    x, second = torch.rand(1, 40, 2, 1, dtype=torch.float64) + 1, torch.ones(1, 2, 1, dtype=torch.float64) * 3
    responses = ask(Stack(family, params, torch.arange(1)), paired(x, second, 10), 10)
    distances = responses.geometry[0, 2, POINTS + 2 :].numpy()
    distances = np.sqrt(np.exp(2 * distances) - MET)
    # Later distances are near the floor below which rounding would speak.
    np.testing.assert_allclose(np.diff(np.log(distances))[:12], np.log(0.6), rtol=1e-6)


def test_states_that_may_be_rescaled_are_read_per_unit_alone():
    relu = asked(Elman(input_size=2, hidden_size=4, output_size=2, nonlinearity="relu"))
    tanh = asked(Elman(input_size=2, hidden_size=4, output_size=2))
    assert relu.by_view[1] is None
    assert relu.per_step[:, :, :, 1].isnan().all()
    torch.testing.assert_close(tanh.by_view[1], tanh.states["h.0"])
    square = tanh.by_view[2].square().mean((1, 2))
    torch.testing.assert_close(square, torch.ones_like(square))


def test_a_model_that_blows_up_is_marked_and_leaves_the_gradient_of_others_alone():
    family = Elman(input_size=1, hidden_size=3, output_size=1, nonlinearity="relu")
    stack = stack_of(family, models=3)
    burst = {**stack.params, "weight_hh.0": stack.params["weight_hh.0"].clone()}
    burst["weight_hh.0"][1] = 1e200
    gradients = []
    for params, rows in ((burst, [0, 1, 2]), ({k: v[[0, 2]] for k, v in burst.items()}, [0, 2])):
        encoder = fitted(made("static"), stack)
        embeddings = encoder([Stack(family, params, torch.tensor(rows))])
        assert embeddings.isfinite().all()
        embeddings[[0, -1]].sum().backward()
        gradients.append(encoder.interview.queries.codes.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@dataclass(frozen=True, kw_only=True)
class Begun(Elman):
    """h_0 = V start, where a task gives two numbers."""

    def declare(self):
        spec = super().declare()
        axes = {**spec.axes, "start": Axis(size=2, kind="input")}
        tensors = {**spec.tensors, "weight_start": TensorSpec(axes=("hidden.0", "start"))}
        return WeightSpec(axes=axes, tensors=tensors, states=spec.states)

    def initial_state(self, params, start):
        return {"h.0": start @ params["weight_start"].T}


@dataclass(frozen=True, kw_only=True)
class Undeclared(Elman):
    def initial_state(self, params, start):
        return {"h.0": start @ torch.ones(17, self.hidden_size, device=start.device)}


def test_a_start_of_a_size_that_no_one_says_is_found_and_fed_zeros():
    family = Begun(input_size=1, hidden_size=3, output_size=1)
    assert start_size(FAMILY) == 0
    assert start_size(family) == 2
    stack = stack_of(family)
    (responses,), _ = fitted(made("static"), stack).interview.ask([stack])
    other = {**stack.params, "weight_start": stack.params["weight_start"] + 1}
    (same,), _ = fitted(made("static"), stack).interview.ask([dataclasses.replace(stack, params=other)])
    assert torch.equal(responses.outputs, same.outputs)
    with pytest.raises(ValueError, match=r"Undeclared cannot be queried: .* none of its axes'"):
        start_size(Undeclared(input_size=1, hidden_size=3, output_size=1))


def test_activities_of_nodes_are_what_their_units_did():
    family = LSTM(input_size=2, hidden_size=3, output_size=2)
    responses = asked(family)
    where = layout(family.effective_spec)
    activity = trajectories(responses, where.offsets, len(where.kind))
    node = where.offsets["hidden.0"].start + 1
    h, c = responses.states["h.0"][0, :, :, 1], responses.states["c.0"][0, :, :, 1]
    assert torch.equal(activity[0, node, 0], h)
    assert torch.equal(activity[0, node, 1], c)
    assert torch.equal(activity[0, where.offsets["input"].start, 0], responses.inputs[0, :, :, 0])
    found = statistics(activity[:, :, 0], responses, max_outputs=4)[0, node].numpy()
    flat, y = h[:, :3].flatten().numpy(), responses.outputs[0, :, :3, 1].flatten().numpy()
    np.testing.assert_allclose(found[:2], [flat.mean(), np.log(flat.std())], rtol=1e-9)
    np.testing.assert_allclose(found[5], np.corrcoef(flat, y)[0, 1], rtol=1e-9)
    assert np.isnan(found[6:8]).all()
    matrix = correlations(activity[:, :, 0])[0]
    other = responses.states["h.0"][0, :, :3, 2].flatten().numpy()
    np.testing.assert_allclose(matrix[0, node, node + 1], np.corrcoef(flat, other)[0, 1], rtol=1e-9)
    assert torch.equal(matrix[1], matrix[2].T)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("querying") / "zoo", models=10, rollouts=False)


@pytest.mark.parametrize("name", MADE)
def test_a_zoo_is_learned_twice_alike_and_comes_back_from_its_checkpoint(name, zoo, tmp_path):
    embeddings = []
    for run in ("first", "again"):
        module = EmbeddingModule(made(name), Supervised(["trace"]))
        data = ZooDataModule(zoo, batch_size=64)
        best = fit(module, data, tmp_path / run, max_epochs=2)
        loaded = load(best).encoder.eval()
        before = made(name).state_dict()["interview.queries.codes"]
        assert not torch.equal(loaded.state_dict()["interview.queries.codes"], before)
        assert loaded.construction == module.encoder.construction
        embeddings.append(embed_rows(loaded, data))
    assert torch.equal(*embeddings)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["static", "interactive", "graph"])
def test_what_a_model_does_is_learned(name):
    """Half of the variance of the mean answer to a constant input, which no encoder is asked to compute."""
    stack = stack_with(VALUES, models=24)
    x = torch.full((24, 8, 1, 2), 3.0, dtype=torch.float64)
    wanted = continued(stack, x, None, "stacked").outputs[:, :, 0, 0].mean(1)
    wanted = ((wanted - wanted.mean()) / wanted.std()).float()
    encoder = made(name)
    encoder.fit_standardisation(iter([stack]))
    head = torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (head(encoder([stack]))[:, 0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_what_cannot_be_asked_is_refused_in_one_line():
    wide = stack_of(Elman(input_size=3, hidden_size=2, output_size=5), models=1)
    for encoder in (Querying(max_inputs=2, **SMALL), QueriedGraph(max_inputs=2, **SMALL)):
        with pytest.raises(ValueError, match=r"Elman has 3 inputs, .* `max_inputs` \(=2\); train with `max_inputs` 3"):
            encoder([wide])
    with pytest.raises(ValueError, match=r"Elman has 5 outputs, .* `max_outputs` 5 or more"):
        Querying(max_outputs=4, **SMALL)([wide])
    with pytest.raises(ValueError, match=r"`mode` \(='loud'\) must be one of static, deep_linear, interactive"):
        Querying(mode="loud")
    with pytest.raises(ValueError, match=r"`num_steps` \(=1\) must be from 2"):
        Querying(num_steps=1)
    with pytest.raises(ValueError, match=r"`num_queries` \(=0\) must be from 1"):
        QueriedGraph(num_queries=0)
    with pytest.raises(ValueError, match=r"`width` \(=0\)"):
        Querying(width=0)
    with pytest.raises(ValueError, match=r"`node_dim` \(=0\)"):
        QueriedGraph(node_dim=0)


@pytest.mark.parametrize("file", ["querying", "queried-graph"])
def test_recipes_are_of_about_200k_parameters(file):
    said = yaml.safe_load(recipe(f"encoder/{file}.yaml").read_text())["model"]["encoder"]
    encoder = encoders.available()[said["class_path"]](**said["init_args"])
    assert 190_000 < sum(p.numel() for p in encoder.parameters()) < 210_000
