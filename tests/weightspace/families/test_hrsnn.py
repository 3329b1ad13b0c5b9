"""Heterogeneous spiking networks against a loop over neurons and snntorch, and their sparse small world."""

import math

import networkx
import numpy as np
import pytest
import torch

from weightspace.families.hrsnn import HRSNN, small_world
from weightspace.rollout import generator, rollout
from weightspace.rollout.tangents import jacobians

PLAIN = HRSNN(input_size=3, hidden_size=6, output_size=2, degree=3, trace_decay=0.7, surrogate_slope=4.0)
FULL = HRSNN(input_size=3, hidden_size=6, output_size=2, degree=3, adaptation=0.4, adaptation_tau=5.0, refractory=2)
STEPS, METHODS = 24, ("native", "stacked", "sequential")


def drawn(family, batch=4, seed="m"):
    """Params of one model, one time constant below 1, and inputs (time, batch, input), float64."""
    params = family.spec.random_params(generator(0, seed, "params"))
    params["tau"][0] = 0.4
    draw = generator(0, seed, "x")
    return params, 1.5 * torch.randn(STEPS, batch, family.input_size, dtype=torch.float64, generator=draw)


def run(family, params, x, method="stacked", **options):
    return rollout(family, {k: v[None] for k, v in params.items()}, x[None], method=method, **options)


def reference(family, params, x):
    """Potentials and spikes (time, hidden) and outputs (time, output) of one sequence, neuron by neuron."""
    p = {name: value.numpy() for name, value in params.items()}
    size = family.hidden_size
    v, fired, trace = [0.0] * size, [False] * size, np.zeros(size)
    raised, silent_until = [0.0] * size, [0] * size
    potentials, spikes, outputs = [], [], []
    for t, x_t in enumerate(x):
        after = []
        for i in range(size):
            drive = p["bias"][i] + sum(w * value for w, value in zip(p["weight_ih"][i], x_t, strict=True))
            drive += sum(p["weight_hh"][i, j] for j in range(size) if p["mask_hh"][i, j] and fired[j])
            after.append(math.exp(-1 / max(p["tau"][i], 1)) * v[i] + drive - fired[i])
            raised[i] = math.exp(-1 / family.adaptation_tau) * raised[i] + fired[i]
        v = after
        fired = [v[i] > 1 + family.adaptation * raised[i] and t >= silent_until[i] for i in range(size)]
        silent_until = [t + 1 + family.refractory if f else s for f, s in zip(fired, silent_until, strict=True)]
        trace = family.trace_decay * trace + np.array(fired)
        potentials.append(v)
        spikes.append(fired)
        outputs.append(p["weight_ho"] @ trace + p["bias_o"])
    return np.array(potentials), np.array(spikes), np.stack(outputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [PLAIN, FULL, *HRSNN.examples()], ids=str)
def test_potentials_and_outputs_equal_those_of_a_loop_over_neurons(family, method):
    params, x = drawn(family)
    found = run(family, params, x, method)
    rates = []
    for sequence in range(x.shape[1]):
        potentials, spikes, outputs = reference(family, params, x[:, sequence].numpy())
        np.testing.assert_allclose(found.states["v"][0, :, sequence].numpy(), potentials, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.outputs[0, :, sequence].numpy(), outputs, rtol=1e-12, atol=1e-12)
        rates.append(spikes.mean())
    # Or nothing that depends on spikes was tested.
    assert 0.05 < np.mean(rates) < 0.9


def test_adaptation_and_rest_each_change_what_fires():
    params, x = drawn(FULL, batch=16)
    counts = {}
    for adaptation in (0.0, 0.4):
        for refractory in (0, 2):
            family = HRSNN(
                input_size=3, hidden_size=6, output_size=2, degree=3, adaptation=adaptation, refractory=refractory
            )
            spikes = [reference(family, params, x[:, s].numpy())[1] for s in range(x.shape[1])]
            counts[adaptation, refractory] = int(np.sum(spikes))
            gaps = [np.diff(np.nonzero(one[:, i])[0]) for one in spikes for i in range(6)]
            assert min(gap.min() for gap in gaps if len(gap)) == refractory + 1
    assert counts[0.4, 2] < min(counts[0.4, 0], counts[0.0, 2]) < counts[0.0, 0]


def test_spikes_and_potentials_are_those_of_snntorch():
    snntorch = pytest.importorskip("snntorch")
    params, x = drawn(PLAIN)
    theirs = snntorch.RLeaky(beta=PLAIN.effective(params)["decay"], linear_features=6).double()
    with torch.no_grad():
        theirs.recurrent.weight.copy_(PLAIN.effective(params)["weight_hh"])
        theirs.recurrent.bias.zero_()
    spikes = potential = torch.zeros(4, 6, dtype=torch.float64)
    found = run(PLAIN, params, x).states["v"][0]
    for t in range(STEPS):
        # Its spikes are float32 whatever it is given.
        spikes, potential = theirs(x[t] @ params["weight_ih"].T + params["bias"], spikes.double(), potential)
        torch.testing.assert_close(found[t], potential.detach(), rtol=1e-12, atol=1e-12)
        assert torch.equal((found[t] > 1).float(), spikes.detach())


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_torch_step_by_step_and_absent_where_no_synapse_is(method):
    params, x = drawn(FULL, batch=2)
    weights = torch.randn(STEPS, 2, 2, dtype=torch.float64, generator=generator(0, "m", "weights"))
    leaves = {name: params[name].clone().requires_grad_() for name in FULL.spec.trained}
    (run(FULL, params | leaves, x, method).outputs[0] * weights).sum().backward()
    by_hand = {name: params[name].clone().requires_grad_() for name in FULL.spec.trained}
    state, total = FULL.initial_state(params, x.new_zeros(2, 0)), 0
    for t in range(STEPS):
        state = FULL.step(params | by_hand, state, x[t], {})
        total = total + (FULL.readout(params | by_hand, state) * weights[t]).sum()
    total.backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, by_hand[name].grad, rtol=1e-9, atol=1e-10)
        assert leaf.grad.abs().max() > 1e-3, name
    assert not leaves["weight_hh"].grad[params["mask_hh"] == 0].any()


@pytest.mark.parametrize("method", ["native", "stacked"])
def test_the_count_of_steps_to_rest_has_no_derivative(method):
    params, x = drawn(FULL, batch=1)
    states = run(FULL, params, x).states
    state = {name: value[:, 9] for name, value in states.items()}
    found = jacobians(FULL, {k: v[None] for k, v in params.items()}, x[None, 10:11], state, {}, method=method)[0, 0, 0]
    names = [name for name in FULL.spec.states for _ in range(6)]
    rest = torch.tensor([name == "rest" for name in names])
    assert float(found[rest].abs().max()) == float(found[:, rest].abs().max()) == 0
    decay = FULL.effective(params)["decay"]
    slope = (1 + 10 * (state["v"] - 1 - 0.4 * state["adaptation"]).abs())[0, 0] ** -2.0
    slope = slope * (state["rest"][0, 0] < 1)
    eye = torch.eye(6, dtype=torch.float64)
    expected = torch.diag(decay) + (params["weight_hh"] * params["mask_hh"] - eye) * slope
    torch.testing.assert_close(found[:6, :6], expected, rtol=1e-12, atol=1e-12)


def test_a_small_world_is_a_ring_that_is_rewired():
    ring = small_world(9, 4, 0.0, generator(0, "m", "ring"))
    lattice = networkx.to_numpy_array(networkx.watts_strogatz_graph(9, 4, 0.0))
    assert ring.tolist() == lattice.tolist()
    for rewiring in (0.1, 0.5, 1.0):
        mask = small_world(20, 4, rewiring, generator(0, "m", "ring"))
        assert mask.sum(1).tolist() == [4] * 20
        assert mask.diag().sum() == 0
    share = torch.stack([small_world(40, 4, 0.3, generator(0, str(i), "m")) for i in range(50)])
    kept = (share * small_world(40, 4, 0.0, generator(0, "m", "m"))).sum((1, 2)) / 160
    # Of 8,000 synapses: four standard errors.
    assert float(kept.mean()) == pytest.approx(0.7, abs=0.02)


def test_rewiring_shortens_paths_more_than_it_breaks_clusters():
    # The mark of a small world (Watts and Strogatz 1998), as networkx measures it.
    paths, clusters = {}, {}
    for rewiring in (0.0, 0.1, 1.0):
        mask = small_world(60, 6, rewiring, generator(0, "m", "world"))
        graph = networkx.from_numpy_array(mask.numpy(), create_using=networkx.DiGraph)
        paths[rewiring] = networkx.average_shortest_path_length(graph)
        clusters[rewiring] = networkx.average_clustering(graph)
    assert paths[0.1] < 0.65 * paths[0.0]
    assert clusters[0.1] > 0.65 * clusters[0.0] > 2 * clusters[1.0]


@pytest.mark.parametrize(("size", "degree"), [(2, 1), (3, 2), (4, 3), (5, 4), (6, 1), (7, 3)])
def test_worlds_of_any_size_have_the_degree(size, degree):
    for rewiring in (0.0, 1.0):
        mask = small_world(size, degree, rewiring, generator(0, "m", "world"))
        assert mask.sum(1).tolist() == [degree] * size
        assert mask.diag().sum() == 0


def test_networks_that_differ_in_heterogeneity_alone_have_the_same_weights():
    draws = {
        shape: HRSNN(input_size=2, hidden_size=400, output_size=1, mean_tau=30.0, tau_shape=shape).init(
            generator(0, "m", "init")
        )
        for shape in (0, 1, 4)
    }
    for shape in (1, 4):
        for name in draws[0].keys() - {"tau"}:
            assert torch.equal(draws[shape][name], draws[0][name])
        # Standard errors of a mean are 1.5 and 0.75.
        assert draws[shape]["tau"].mean() == pytest.approx(30, abs=5)
        assert draws[shape]["tau"].std() == pytest.approx(30 / shape**0.5, rel=0.2)
    assert draws[0]["tau"].unique().tolist() == [30]


def test_fresh_networks_spike():
    family = HRSNN(input_size=2, hidden_size=16, output_size=1)
    draws = [family.init(generator(0, str(i), "init")) for i in range(20)]
    params = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    x = torch.randn(20, 50, 4, 2, generator=generator(0, "m", "x"))
    rates = (rollout(family, params, x).states["v"] > 1).float().mean((1, 2, 3))
    assert rates.min() > 0.01
    assert rates.max() < 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean_tau", 0.0), ("surrogate_slope", -1.0), ("trace_decay", 1.0), ("tau_shape", -1), ("adaptation", -0.1),
        ("adaptation_tau", math.inf), ("rewiring", 1.1), ("degree", 0), ("refractory", -1), ("hidden_size", 4),
    ],
)  # fmt: skip
def test_fields_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        HRSNN(**({"input_size": 1, "hidden_size": 8, "output_size": 1} | {field: value}))
