"""Rollouts solved in parallel over time against loops over steps: values, gradients, convergence."""

import dataclasses
import itertools

import pytest
import torch

from tests.members import ONE_OF_EACH_FAST
from weightspace.families.elman import Elman
from weightspace.families.elstm import ELSTM
from weightspace.families.gru import GRU
from weightspace.families.lru import LRU
from weightspace.families.para_gru import ParaGRU
from weightspace.rollout import generator, rollout
from weightspace.rollout.methods import deer as deer_file
from weightspace.rollout.methods.deer import Deer
from weightspace.rollout.methods.quasi_deer import QuasiDeer
from weightspace.rollout.scan import solve

IDS = ["a", "b", "c"]


def drawn(family, num_steps, batch_size=2, dtype=torch.float64):
    """Fresh params, inputs and noise of three models."""
    params = [family.init(generator(0, name, "init")) for name in IDS]
    source = generator(0, "m", "x")
    size = (len(IDS), num_steps, batch_size)
    x = torch.randn(*size, family.input_size, dtype=torch.float64, generator=source).to(dtype)
    axes = family.spec.noise.items()
    noise = {k: torch.randn(*size, family.spec.axes[a].size, dtype=torch.float64, generator=source) for k, a in axes}
    stacked = {name: torch.stack([one[name].to(dtype) for one in params]) for name in family.spec.tensors}
    return stacked, x, {name: value.to(dtype) for name, value in noise.items()}


def network(gain, num_steps, hidden_size=16, models=3):
    """Random tanh networks with recurrent weights of this gain, driven by weak noise."""
    family = Elman(input_size=1, hidden_size=hidden_size, output_size=1)
    source = generator(1, "m", "network")
    params = {
        name: torch.zeros(models, *family.spec.shape(name), dtype=torch.float64) for name in family.spec.tensors
    }
    for name in ("weight_hh.0", "weight_ih.0"):
        shape = params[name].shape
        scale = gain / hidden_size**0.5 if name == "weight_hh.0" else 1.0
        params[name] = scale * torch.randn(shape, dtype=torch.float64, generator=source)
    x = 0.3 * torch.randn(models, num_steps, 1, 1, dtype=torch.float64, generator=source)
    return family, params, x


def states(run):
    return torch.cat(list(run.states.values()), dim=-1)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 8, 13])
@pytest.mark.parametrize("diagonal", [False, True], ids=["matrices", "diagonals"])
def test_linear_recurrences_are_solved_as_by_a_loop_forward_and_backward(num_steps, diagonal):
    source = generator(0, "m", "scan")
    # As many sequences as states: matrices are told from diagonals by their axes, not by their sizes.
    drive = torch.randn(2, num_steps, 4, 4, dtype=torch.float64, generator=source).requires_grad_()
    factors = torch.randn(2, num_steps, 4, 4, *([] if diagonal else [4]), dtype=torch.float64, generator=source) / 2
    y, loop = torch.zeros(2, 4, 4, dtype=torch.float64), []
    for t in range(num_steps):
        moved = factors[:, t] * y if diagonal else (factors[:, t] @ y[..., None])[..., 0]
        y = moved + drive[:, t]
        loop.append(y)
    expected, found = torch.stack(loop, dim=1), solve(factors, drive)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=source)
    gradients = [torch.autograd.grad((weight * value).sum(), drive)[0] for value in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["deer", "quasi_deer"])
@pytest.mark.parametrize("family", ONE_OF_EACH_FAST, ids=str)
def test_values_and_gradients_are_those_of_the_loop(family, method):
    params, x, noise = drawn(family, 24)
    found = []
    for name in ("stacked", method):
        leaves = [leaf.clone().requires_grad_() for leaf in (*params.values(), *noise.values(), x)]
        parts = iter(leaves)
        given = {key: next(parts) for key in params}
        driven = {key: next(parts) for key in noise}
        run = rollout(family, given, next(parts), noise=driven, method=name)
        total = run.outputs.square().sum() + states(run).sum()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        found.append(([run.outputs.detach(), states(run).detach(), *run.final.values()], gradients))
    tolerance = 1e-10 if method == "deer" else 1e-8
    for value, expected in zip(found[1][0], found[0][0], strict=True):
        assert (value - expected).abs().max() <= tolerance * (1 + expected.abs().max())
    largest = max(float(gradient.abs().max()) for gradient in found[0][1])
    for gradient, expected in zip(found[1][1], found[0][1], strict=True):
        scale = max(float(expected.abs().max()), 1e-6 * largest)
        assert (gradient - expected).abs().max() <= (1e-9 if method == "deer" else 1e-7) * scale


def test_float32_is_as_exact_as_it_says():
    params, x, _ = drawn(GRU(input_size=2, hidden_size=4, output_size=2), 300, dtype=torch.float32)
    family = GRU(input_size=2, hidden_size=4, output_size=2)
    expected = rollout(family, params, x).outputs
    torch.testing.assert_close(rollout(family, params, x, method="deer").outputs, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rollout(family, params, x, method="quasi_deer").outputs, expected, rtol=1e-3, atol=1e-3)


def test_a_rollout_goes_on_from_a_state_through_which_gradients_flow():
    family = GRU(input_size=2, hidden_size=3, output_size=2)
    params, x, _ = drawn(family, 15)
    found = []
    for method in ("stacked", "deer"):
        state = {"h.0": torch.full((3, 2, 3), 0.3, dtype=torch.float64, requires_grad=True)}
        run = rollout(family, params, x, method=method, state=state)
        found.append((run.outputs, *torch.autograd.grad(run.outputs.square().sum(), state["h.0"])))
    for value, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("method", [Deer, QuasiDeer])
@pytest.mark.parametrize("damping", [0.0, 0.4, 1.0])
def test_after_so_many_iterations_as_many_states_are_exact(method, damping):
    family, params, x = network(2.0, 12)
    expected = states(rollout(family, params, x))
    for count in (1, 3, 7, 12):
        found = states(rollout(family, params, x, method=method(most_iterations=count, damping=damping)))
        torch.testing.assert_close(found[:, :count], expected[:, :count], rtol=1e-12, atol=1e-12)
        # Undamped, whole Jacobians have found all states by then.
        assert count > 3 or (found[:, count] - expected[:, count]).abs().max() > 1e-12


def test_errors_are_squared_by_an_iteration():
    family, params, x = network(1.5, 200, models=2)
    expected, errors = states(rollout(family, params, x)), []
    for count in range(1, 15):
        found = states(rollout(family, params, x, method=Deer(most_iterations=count)))
        errors.append((found - expected).abs().amax((1, 2, 3)).tolist())
    for of_model in zip(*errors, strict=True):
        pairs = [(e, after) for e, after in itertools.pairwise(of_model) if 1e-6 < e < 5e-2]
        assert len(pairs) >= 2
        assert all(after <= 5 * e**2 for e, after in pairs)
        assert of_model[-1] < 1e-13


def test_linear_networks_take_one_iteration_and_units_that_read_themselves_no_matrices():
    family = LRU(input_size=2, hidden_size=4, output_size=1)
    params, x, _ = drawn(family, 40)
    assert rollout(family, params, x, method="deer").report["iterations"].tolist() == [1, 1, 1]
    family = ParaGRU(input_size=2, hidden_size=4, output_size=1)
    params, x, _ = drawn(family, 40)
    whole, diagonal = (rollout(family, params, x, method=method) for method in ("deer", "quasi_deer"))
    assert torch.equal(whole.report["iterations"], diagonal.report["iterations"])
    torch.testing.assert_close(states(whole), states(diagonal), rtol=1e-12, atol=1e-12)
    family = ELSTM(input_size=2, hidden_size=4, output_size=1)
    params, x, _ = drawn(family, 40)
    whole, diagonal = (rollout(family, params, x, method=method) for method in ("deer", "quasi_deer"))
    # The diagonal leaves out what the output gate reads, which no later step depends on: h takes one iteration more.
    assert torch.equal(whole.report["iterations"] + 1, diagonal.report["iterations"])


def test_unstable_networks_take_more_iterations_but_never_more_than_steps():
    medians = []
    for gain in (0.5, 1.1, 2.0, 4.0):
        family, params, x = network(gain, 64)
        run = rollout(family, params, x, method="deer")
        assert run.report["iterations"].max() <= 64
        medians.append(float(run.report["iterations"].double().median()))
        assert states(run).isfinite().all()
        # Chaos parts trajectories, but every step follows from the one before it.
        before = {"h.0": torch.cat([x.new_zeros(3, 1, 1, 16), run.states["h.0"][:, :-1]], 1).flatten(1, 2)}
        after = torch.func.vmap(family.step)(params, before, x.flatten(1, 2), {})["h.0"]
        torch.testing.assert_close(after.view_as(run.states["h.0"]), run.states["h.0"], rtol=1e-8, atol=1e-8)
    assert medians == sorted(medians)
    assert medians[0] < medians[1] < medians[2]


def test_steps_that_overflow_any_product_do_not_spoil_the_states_before_them():
    family, params, x = network(4.0, 300, hidden_size=4)
    params["weight_hh.0"][1] *= 1e4
    narrow = {name: value.float() for name, value in params.items()}
    run = rollout(family, narrow, x.float(), method="deer")
    assert states(run).isfinite().all()
    assert states(run).abs().max() <= 1


def test_models_that_converged_are_left_out(monkeypatch):
    family, params, x = network(1.0, 128)
    params["weight_hh.0"][1] *= 2.5
    counts = []

    def counted(*given):
        counts.append(len(given[3]))
        return jacobians_at(*given)

    jacobians_at = deer_file.jacobians_at
    monkeypatch.setattr(deer_file, "jacobians_at", counted)
    together = rollout(family, params, x, method="deer")
    iterations = together.report["iterations"]
    assert iterations[1] > iterations[[0, 2]].max()
    # One more each, which finds that nothing moves.
    expected = [int((iterations + 1 > k).sum()) for k in range(min(int(iterations.max()) + 1, 128))]
    assert counts == expected
    for model in range(3):
        alone = rollout(family, {k: v[[model]] for k, v in params.items()}, x[[model]], method="deer")
        assert alone.report["iterations"].item() == iterations[model]
        torch.testing.assert_close(states(alone)[0], states(together)[model], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", [Deer, QuasiDeer])
def test_a_converged_model_is_frozen_while_its_stack_mates_go_on(method):
    family, params, x = network(0.3, 40)
    params["weight_hh.0"][1] *= 10
    full = rollout(family, params, x, method=method())
    iterations = full.report["iterations"].tolist()
    assert max(iterations[0], iterations[2]) + 5 < iterations[1]
    for model in (0, 2):
        stopped = rollout(family, params, x, method=method(most_iterations=iterations[model] + 1))
        assert stopped.report["iterations"][1] > iterations[model]
        assert torch.equal(states(stopped)[model], states(full)[model])


@pytest.mark.parametrize("method", ["deer", "quasi_deer"])
def test_models_whose_states_are_not_finite_or_huge_get_the_sequential_ones_and_spare_the_others(method):
    family = Elman(input_size=1, hidden_size=3, output_size=1, nonlinearity="relu")
    source = generator(3, "m", "relu")
    shapes = {name: (5, *family.spec.shape(name)) for name in family.spec.tensors}
    params = {name: torch.rand(shape, dtype=torch.float64, generator=source) for name, shape in shapes.items()}
    # Beyond the limit, beyond float64, and not a number from one step on.
    for model, factor in enumerate((0.2, 5.0, 1e14, 0.2, 0.2)):
        params["weight_hh.0"][model] *= factor
    x = torch.rand(5, 30, 1, 1, dtype=torch.float64, generator=source)
    x[3, 12] = torch.nan
    expected, run = rollout(family, params, x), rollout(family, params, x, method=method)
    assert states(expected)[1].max() > 1e9
    assert not states(expected)[2].isfinite().all()
    torch.testing.assert_close(states(run), states(expected), rtol=1e-9, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(run.outputs, expected.outputs, rtol=1e-9, atol=1e-9, equal_nan=True)
    for model in (0, 4):
        alone = rollout(family, {k: v[[model]] for k, v in params.items()}, x[[model]], method=method)
        assert alone.report["iterations"].item() == run.report["iterations"][model] < 30
        torch.testing.assert_close(states(alone)[0], states(run)[model], rtol=1e-12, atol=1e-12)


def test_residuals_are_those_of_the_iterates_and_end_where_a_model_stops():
    family, params, x = network(1.2, 30)
    params["weight_hh.0"][1] *= 2
    report = rollout(family, params, x, method="deer").report
    residuals, iterations = report["residuals"], report["iterations"]
    assert residuals.isfinite().sum(1).tolist() == [min(k + 1, 30) for k in iterations.tolist()]
    for count in range(1, residuals.shape[1]):
        now = states(rollout(family, params, x, method=Deer(most_iterations=count)))
        before = torch.cat([torch.zeros_like(now[:, :1]), now[:, :-1]], dim=1).flatten(1, 2)
        after = torch.func.vmap(family.step)(params, {"h.0": before}, x.flatten(1, 2), {})["h.0"]
        expected = (after.view_as(now) - now).abs().amax((1, 2, 3))
        there = residuals[:, count].isfinite()
        torch.testing.assert_close(residuals[there, count], expected[there], rtol=1e-6, atol=1e-13)


def test_damped_iterations_find_the_same_states_more_slowly():
    family, params, x = network(0.9, 100)
    expected, plain = rollout(family, params, x), rollout(family, params, x, method="deer")
    damped = rollout(family, params, x, method=Deer(damping=0.2))
    assert (damped.report["iterations"] > plain.report["iterations"]).all()
    torch.testing.assert_close(states(damped), states(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 1.5}, r"`damping` \(=1.5\) must be from 0 to 1"),
        ({"tolerance": 0.0}, r"`tolerance` \(=0\) must be above 0"),
        ({"most_iterations": 0}, r"`most_iterations` \(=0\) must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Deer(), **options)


def test_gradients_of_gradients_are_refused():
    family = GRU(input_size=1, hidden_size=2, output_size=1)
    params, x, _ = drawn(family, 5)
    x.requires_grad_()
    outputs = rollout(family, params, x, method="deer").outputs
    (gradient,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
