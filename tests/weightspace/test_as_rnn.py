"""Models as modules of torch.nn: the same outputs and states, and what code for nn.GRU and nn.LSTM asks of them."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

import weightspace as ws
from tests.trial_members.decays import Decays
from tests.trial_members.delays import Delays
from tests.trial_members.liquid import Liquid
from weightspace import families
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.rollout import Streams, generator, rollout
from weightspace.rollout.noise import draw_noise


class Disturbed(GRU):
    """A GRU whose first state is what the task says, and whose states are disturbed at every step."""

    @property
    def reads_start(self):
        return self.hidden_size

    def declare(self):
        return dataclasses.replace(super().declare(), noise={"kick": "hidden.0"})

    def initial_state(self, params, start):
        return {"h.0": torch.tanh(start)}

    def step(self, params, state, x, noise):
        after = super().step(params, state, x, {})
        return {"h.0": after["h.0"] + 0.1 * noise["kick"]}


EXAMPLES = [example for family in families.available().values() for example in family.examples()]
TRIALS = [example for kind in (Decays, Delays, Liquid) for example in kind.examples()]
TRIALS.append(Disturbed(input_size=2, hidden_size=3, output_size=1))


def drawn(family, batch=3, steps=6):
    """Params, inputs (batch, time, input), start and noise (batch, time, axis) of one model."""
    params = family.init(generator(0, "m", "init"))
    x = torch.randn(batch, steps, family.input_size, generator=generator(0, "m", "x"))
    start = torch.randn(batch, family.reads_start, generator=generator(0, "m", "start"))
    noise = draw_noise(family.spec, Streams(0, ["m"], "noise"), steps, batch)
    return params, x, start, {name: value[0].transpose(0, 1) for name, value in noise.items()}


def rolled(family, params, x, start, noise):
    early = {name: value.transpose(0, 1) for name, value in noise.items()}
    return rollout(family, params, x.transpose(0, 1), start, noise=early)


@pytest.mark.parametrize("family", EXAMPLES + TRIALS, ids=str)
def test_outputs_and_states_equal_those_of_a_rollout(family):
    params, x, start, noise = drawn(family)
    rnn, wanted = family.as_rnn(params), rolled(family, params, x, start, noise)
    outputs, h = rnn(x, start=start, noise=noise)
    torch.testing.assert_close(outputs, wanted.outputs.transpose(0, 1), rtol=0, atol=1e-6)
    first, middle = rnn(x[:, :2], start=start, noise={name: value[:, :2] for name, value in noise.items()})
    rest, last = rnn(x[:, 2:], middle, noise={name: value[:, 2:] for name, value in noise.items()})
    torch.testing.assert_close(torch.cat([first, rest], 1), outputs, rtol=0, atol=1e-6)
    for parts in (h, last):
        flat = torch.cat([part.movedim(0, 1).flatten(1) for part in as_tuple(parts)], dim=1)
        final = torch.cat(list(wanted.final.values()), dim=1)
        torch.testing.assert_close(flat.sort(1).values, final.sort(1).values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", EXAMPLES + TRIALS, ids=str)
def test_a_cell_makes_the_steps_of_its_layer(family):
    params, x, start, noise = drawn(family, steps=3)
    rnn = family.as_rnn(params)
    h = None
    for t in range(3):
        h = rnn.cell(x[:, t], h, start=start, noise={name: value[:, t] for name, value in noise.items()})
    _, wanted = rnn(x, start=start, noise=noise)
    for part, own in zip(as_tuple(h), as_tuple(wanted), strict=True):
        torch.testing.assert_close(part, own.movedim(0, 1).flatten(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", EXAMPLES + TRIALS, ids=str)
def test_parameters_are_the_trained_tensors_and_get_the_gradients_of_a_rollout(family):
    params, x, start, noise = drawn(family)
    rnn = family.as_rnn(params)
    assert dict(rnn.state_dict()).keys() == family.spec.tensors.keys()
    assert {name for name, _ in rnn.named_parameters()} == set(family.spec.trained)
    rnn(x, start=start, noise=noise)[0].square().sum().backward()
    leaves = {k: v.clone().requires_grad_(k in family.spec.trained) for k, v in params.items()}
    rolled(family, leaves, x, start, noise).outputs.square().sum().backward()
    for name, parameter in rnn.named_parameters():
        torch.testing.assert_close(parameter.grad, leaves[name].grad, rtol=1e-4, atol=1e-5)
    # Units of a fresh network may all be silent, but its read-out's bias is not.
    assert any(parameter.grad.abs().max() > 0 for parameter in rnn.parameters())


def as_tuple(h):
    return h if isinstance(h, tuple) else (h,)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_layer_of_torch_comes_back_with_the_states_that_it_had(kind):
    torch.manual_seed(0)
    layer, x = kind(3, 5, num_layers=2, batch_first=True), torch.randn(4, 7, 3)
    family, params = ws.from_torch(layer)
    rnn = family.as_rnn(params)
    assert rnn.batch_first
    assert rnn.input_size == 3
    h = tuple(torch.randn(2, 4, 5) for _ in range(2)) if kind is nn.LSTM else torch.randn(2, 4, 5)
    for state in (None, h):
        (outputs, own), (wanted, theirs) = rnn(x, state), layer(x, state)
        assert type(own) is type(theirs)
        torch.testing.assert_close((outputs, *as_tuple(own)), (wanted, *as_tuple(theirs)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "cell"), [(nn.GRU, nn.GRUCell), (nn.LSTM, nn.LSTMCell)])
def test_a_cell_of_torch_takes_and_gives_the_same(kind, cell):
    torch.manual_seed(0)
    theirs = cell(3, 5)
    family, params = ws.from_torch(theirs)
    own, x = family.as_rnn(params).cell, torch.randn(4, 3)
    h = (torch.randn(4, 5), torch.randn(4, 5)) if kind is nn.LSTM else torch.randn(4, 5)
    torch.testing.assert_close(own(x, h), theirs(x, h), rtol=0, atol=1e-6)


def test_an_optimiser_trains_the_module_and_the_parameters_that_it_was_given():
    family = GRU(input_size=2, hidden_size=4, output_size=1)
    given = {k: nn.Parameter(v) for k, v in family.init(generator(0, "m", "init")).items()}
    before = copy.deepcopy(given)
    rnn, x = family.as_rnn(given), torch.randn(8, 5, 2, generator=generator(0, "m", "x"))
    assert all(own is given[name] for name, own in rnn.cell.named_parameters())
    optimiser = torch.optim.Adam(rnn.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = (rnn(x)[0] - x.sum(-1, keepdim=True)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(not torch.equal(given[name], before[name]) for name in given)


def test_a_module_that_was_trained_further_is_a_model_again():
    family = Elman(input_size=2, hidden_size=4, output_size=1, num_layers=2)
    rnn = family.as_rnn(family.init(generator(0, "m", "init")))
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.add_(1)
    again = ws.from_torch(rnn)
    assert again.family == family
    assert all(torch.equal(tensor, rnn.params[name]) for name, tensor in again.params.items())
    torch.testing.assert_close(ws.embed(rnn), ws.embed(again))


def test_gradients_flow_to_tensors_that_something_else_computes():
    family = GRU(input_size=2, hidden_size=4, output_size=1)
    scale, params = torch.tensor(1.0, requires_grad=True), family.init(generator(0, "m", "init"))
    rnn, x = family.as_rnn(params), torch.randn(3, 5, 2)
    computed = {name: scale * tensor for name, tensor in params.items()}
    torch.func.functional_call(rnn, computed, (x,))[0].sum().backward()
    assert scale.grad.abs() > 0


def minimise_speed(rnn, x, h, steps=1500):
    """Descent of finders of fixed points on q = |F(h) - h|^2 / 2 for a batch of states at once."""
    for parameter in rnn.parameters():
        parameter.requires_grad_(False)
    inputs = x[:, None] if rnn.batch_first else x[None]
    h = h[None].clone().requires_grad_()
    optimiser = torch.optim.Adam([h], lr=0.02)
    for _ in range(steps):
        _, after = rnn(inputs, h)
        q = (after - h).square().sum() / 2
        optimiser.zero_grad()
        q.backward()
        optimiser.step()
    return h[0].detach()


def test_a_finder_of_fixed_points_takes_the_module():
    family = Elman(input_size=1, hidden_size=1, output_size=1)
    params = {"weight_hh.0": [[2.0]], "bias.0": [0.1], "weight_ih.0": [[1.0]], "weight_ho": [[1.0]], "bias_o": [0.0]}
    rnn = family.as_rnn({name: torch.tensor(value) for name, value in params.items()})
    # A transposed view: states need not lie in memory one after another.
    points = minimise_speed(rnn, torch.zeros(2, 1), torch.tensor([[-0.7, 0.7]]).T, steps=400)
    roots = [brentq(lambda h: np.tanh(2 * h + 0.1) - h, *ends) for ends in ((-1, -0.5), (0.5, 1))]
    np.testing.assert_allclose(points[:, 0], roots, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "h", "message"),
    [
        (torch.zeros(4, 7, 2), None, r"input has shape \(4, 7, 2\), expected \(batch, time, input\)"),
        (torch.zeros(7, 3), None, r"input has shape \(7, 3\)"),
        (torch.zeros(4, 7, 3), torch.zeros(4, 5), r"h has shape \(4, 5\), expected \(1, 4, 5\) and \(1, 4, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_shape_that_would(x, h, message):
    family, params = ws.from_torch(nn.LSTM(3, 5))
    with pytest.raises(ValueError, match=message):
        family.as_rnn(params)(x, h)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_a_module_is_copied_saved_and_loaded_like_any_other(family):
    params, x, start, _ = drawn(family, steps=2)
    rnn, other = (family.as_rnn(own) for own in (params, family.init(generator(0, "n", "init"))))
    wanted = rnn.eval()(x, start=start)[0]
    other.load_state_dict(rnn.state_dict())
    for same in (copy.deepcopy(rnn), other, rnn.double().float()):
        assert torch.equal(same(x, start=start)[0], wanted)


def test_a_stack_is_refused_as_a_module():
    family, params = ws.from_torch(nn.GRU(3, 5))
    with pytest.raises(ValueError, match=r"'weight_ih\.0' has shape"):
        family.as_rnn({name: torch.stack([tensor, tensor]) for name, tensor in params.items()})
