"""Leaky integrate-and-fire networks against a loop over neurons, gradients by hand, and snntorch."""

import math

import numpy as np
import pytest
import torch

from weightspace.families.lif import LIF
from weightspace.rollout import generator, rollout
from weightspace.rollout.tangents import jacobians

FAMILY = LIF(input_size=3, hidden_size=6, output_size=2, trace_decay=0.7, surrogate_slope=4.0)
STEPS, METHODS = 12, ("native", "stacked", "sequential")


def drawn(family=FAMILY, batch=4, seed="m"):
    """Params of one model, one time constant below 1, and inputs (time, batch, input), float64."""
    params = family.spec.random_params(generator(0, seed, "params"))
    params["tau"][0] = 0.4
    draw = generator(0, seed, "x")
    return params, torch.randn(STEPS, batch, family.input_size, dtype=torch.float64, generator=draw)


def run(family, params, x, method="stacked", **options):
    return rollout(family, {k: v[None] for k, v in params.items()}, x[None], method=method, **options)


def reference(family, params, x):
    """Potentials (time, hidden), traces (time, hidden) and outputs (time, output) of one sequence, neuron by neuron."""
    p = {name: value.numpy() for name, value in params.items()}
    size = family.hidden_size
    v, s, trace = np.zeros(size), np.zeros(size), np.zeros(size)
    potentials, traces, outputs = [], [], []
    for x_t in x:
        new = np.zeros(size)
        for i in range(size):
            new[i] = math.exp(-1 / max(p["tau"][i], 1)) * v[i] + p["bias"][i] + sum(p["weight_ih"][i] * x_t)
            new[i] += sum(p["weight_hh"][i, j] for j in range(size) if s[j])
            new[i] -= 1 if s[i] else 0
        v, s = new, [potential > 1 for potential in new]
        trace = family.trace_decay * trace + np.array(s)
        potentials.append(v)
        traces.append(trace)
        outputs.append(p["weight_ho"] @ trace + p["bias_o"])
    return np.stack(potentials), np.stack(traces), np.stack(outputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [FAMILY, *LIF.examples()], ids=str)
def test_potentials_traces_and_outputs_equal_those_of_a_loop_over_neurons(family, method):
    params, x = drawn(family)
    found = run(family, params, x, method)
    for sequence in range(x.shape[1]):
        expected = reference(family, params, x[:, sequence].numpy())
        for one, other in zip((found.states["v"], found.states["trace"], found.outputs), expected, strict=True):
            np.testing.assert_allclose(one[0, :, sequence].numpy(), other, rtol=1e-12, atol=1e-12)
    # Or nothing that depends on spikes was tested.
    assert 0.05 < (found.states["v"] > 1).double().mean() < 0.9


def gradients_by_hand(family, params, x, start, weights):
    """Gradients of the sum of weights (time, output) times outputs of one sequence from potentials `start`."""
    p = {name: value.numpy() for name, value in params.items()}
    decay = np.exp(-1 / np.maximum(p["tau"], 1))
    v, trace = [start], [np.zeros(family.hidden_size)]
    for x_t in x:
        fired = (v[-1] > 1).astype(float)
        v.append(decay * v[-1] + p["weight_hh"] @ fired + p["weight_ih"] @ x_t + p["bias"] - fired)
        trace.append(family.trace_decay * trace[-1] + (v[-1] > 1))
    found = {name: np.zeros_like(value) for name, value in p.items()} | {"x": np.zeros_like(x)}
    of_trace, of_v = np.zeros(family.hidden_size), np.zeros(family.hidden_size)
    for t in range(len(x), -1, -1):
        slope = 1 / (1 + family.surrogate_slope * np.abs(v[t] - 1)) ** 2
        of_spikes = p["weight_hh"].T @ of_v - of_v
        if t == 0:
            break
        of_trace = family.trace_decay * of_trace + p["weight_ho"].T @ weights[t - 1]
        of_v = decay * of_v + slope * (of_spikes + of_trace)
        fired = (v[t - 1] > 1).astype(float)
        found["weight_ho"] += np.outer(weights[t - 1], trace[t])
        found["bias_o"] += weights[t - 1]
        found["weight_hh"] += np.outer(of_v, fired)
        found["weight_ih"] += np.outer(of_v, x[t - 1])
        found["bias"] += of_v
        found["tau"] += np.where(p["tau"] >= 1, of_v * v[t - 1] * decay / p["tau"] ** 2, 0)
        found["x"][t - 1] = p["weight_ih"].T @ of_v
    return found | {"start": decay * of_v + slope * of_spikes}


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_surrogate_by_hand(method):
    params, x = drawn(batch=1)
    draw = generator(0, "m", "start")
    start = torch.randn(6, dtype=torch.float64, generator=draw)
    weights = torch.randn(STEPS, 2, dtype=torch.float64, generator=draw)
    expected = gradients_by_hand(FAMILY, params, x[:, 0].numpy(), start.numpy(), weights.numpy())
    leaves = {name: value.clone().requires_grad_() for name, value in {**params, "x": x, "start": start}.items()}
    state = {"v": leaves["start"][None, None], "trace": torch.zeros(1, 1, 6, dtype=torch.float64)}
    outputs = run(FAMILY, {name: leaves[name] for name in params}, leaves["x"], method, state=state).outputs
    (outputs[0, :, 0] * weights).sum().backward()
    for name, leaf in leaves.items():
        found = leaf.grad[:, 0] if name == "x" else leaf.grad
        np.testing.assert_allclose(found.numpy(), expected[name], rtol=1e-10, atol=1e-10, err_msg=name)
        # The true derivative of spikes, 0, would leave only what the read-out itself has.
        assert found.abs().max() > 1e-3, name


@pytest.mark.parametrize("method", ["native", "stacked"])
def test_jacobians_are_those_of_the_surrogate(method):
    params, x = drawn(batch=1)
    start = torch.randn(6, dtype=torch.float64, generator=generator(0, "m", "start"))
    state = {"v": start[None, None], "trace": torch.zeros(1, 1, 6, dtype=torch.float64)}
    stack = {name: value[None] for name, value in params.items()}
    found = jacobians(FAMILY, stack, x[None, :1], state, {}, method=method)[0, 0, 0]
    after = run(FAMILY, params, x[:1], state=state).states["v"][0, 0, 0]
    before_slope, after_slope = ((1 + 4 * (v - 1).abs()) ** -2.0 for v in (start, after))
    eye = torch.eye(6, dtype=torch.float64)
    of_v = torch.diag(torch.exp(-1 / params["tau"].clamp(min=1))) + (params["weight_hh"] - eye) * before_slope
    expected = torch.cat([torch.cat([of_v, 0 * eye], 1), torch.cat([after_slope[:, None] * of_v, 0.7 * eye], 1)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_spikes_and_potentials_are_those_of_snntorch():
    snntorch = pytest.importorskip("snntorch")
    params, x = drawn()
    theirs = snntorch.RLeaky(beta=FAMILY.effective(params)["decay"], linear_features=6).double()
    with torch.no_grad():
        theirs.recurrent.weight.copy_(params["weight_hh"])
        theirs.recurrent.bias.zero_()
    spikes = potential = torch.zeros(4, 6, dtype=torch.float64)
    found = run(FAMILY, params, x).states["v"][0]
    for t in range(STEPS):
        # Its spikes are float32 whatever it is given.
        drive = x[t] @ params["weight_ih"].T + params["bias"]
        spikes, potential = theirs(drive, spikes.double(), potential)
        torch.testing.assert_close(found[t], potential.detach(), rtol=1e-12, atol=1e-12)
        assert torch.equal((found[t] > 1).float(), spikes.detach())


def test_a_neuron_alone_fires_at_the_rate_that_its_drive_sets():
    # Without a leak to speak of, each spike takes away what 1 / drive steps bring.
    family = LIF(input_size=1, hidden_size=1, output_size=1)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    params = {"weight_ih": one, "weight_hh": zero, "bias": zero[0], "tau": 1e9 * one[0], "weight_ho": one}
    x = torch.full((1000, 1, 1), 0.3, dtype=torch.float64)
    outputs = run(family, {**params, "bias_o": zero[0]}, x).outputs
    assert float(outputs.mean()) == pytest.approx(0.3, abs=2e-3)
    assert set(outputs.flatten().tolist()) == {0.0, 1.0}


def test_effective_params_have_the_decay_that_acts():
    params, _ = drawn()
    used = FAMILY.effective(params)
    assert "tau" not in used
    assert used["decay"][0] == math.exp(-1)
    torch.testing.assert_close(-1 / used["decay"].log(), params["tau"].clamp(min=1), rtol=1e-12, atol=0)
    FAMILY.effective_spec.check(used, stacked=False)


def test_fresh_time_constants_follow_a_gamma_distribution():
    for shape in (1, 4):
        family = LIF(input_size=1, hidden_size=500, output_size=1, mean_tau=50.0, tau_shape=shape)
        tau = torch.cat([family.init(generator(0, str(i), "init"))["tau"] for i in range(40)])
        assert tau.mean() == pytest.approx(50, rel=0.03)
        assert tau.std() == pytest.approx(50 / shape**0.5, rel=0.03)
        assert tau.min() >= 1


def test_fresh_networks_spike():
    family = LIF(input_size=2, hidden_size=16, output_size=1)
    draws = [family.init(generator(0, str(i), "init")) for i in range(20)]
    params = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    x = torch.randn(20, 50, 4, 2, generator=generator(0, "m", "x"))
    rates = (rollout(family, params, x).states["v"] > 1).float().mean((1, 2, 3))
    assert rates.min() > 0.01
    assert rates.max() < 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [("mean_tau", 0.0), ("surrogate_slope", -1.0), ("trace_decay", 1.0), ("trace_decay", -0.1), ("tau_shape", 0)],
)
def test_fields_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        LIF(input_size=1, hidden_size=2, output_size=1, **{field: value})
