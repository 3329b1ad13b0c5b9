"""Liquid time-constant networks against the authors' package, neuron by neuron, and their wirings."""

import math

import pytest
import torch
from ncps import wirings
from ncps.torch import ltc_cell

from weightspace.families.ltc import LTC, paired, skewed, summed
from weightspace.families.wiring import layers, wired
from weightspace.rollout import generator, native, rollout
from zoo_builder.learning.descent import KEPT

EXAMPLES = pytest.mark.parametrize("family", LTC.examples(), ids=str)


def inputs_and_params(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    return torch.randn(5, 2, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x")), params


def softplus(x):
    return math.log1p(math.exp(float(x)))


def flows(params, prefix, mask, unit, sources):
    """Current into one unit and its conductance, synapse by synapse."""
    current = conductance = 0.0
    for j, v in enumerate(sources):
        w, mu, sigma, erev = (params[prefix + name][unit, j] for name in ("w", "mu", "sigma", "erev"))
        active = softplus(w) * float(params[mask][unit, j]) / (1 + math.exp(-float(sigma) * (v - float(mu))))
        current, conductance = current + active * float(erev), conductance + active
    return current, conductance


def unit_after(family, params, unit, v, x):
    """One unit's potential after one of the unfolds, in plain numbers."""
    (from_units, over_units), (from_inputs, over_inputs) = (
        flows(params, "", "mask_hidden", unit, v),
        flows(params, "sensory_", "mask_input", unit, x),
    )
    c, g = softplus(params["cm"][unit]) * family.unfolds, softplus(params["gleak"][unit])
    numerator = c * v[unit] + g * float(params["vleak"][unit]) + from_units + from_inputs
    return numerator / (c + g + over_units + over_inputs + 1e-8)


@EXAMPLES
def test_units_follow_the_equations_one_by_one(family):
    x, params = inputs_and_params(family)
    run = rollout(family, {name: value[None] for name, value in params.items()}, x[None])
    for sequence in range(x.shape[1]):
        v = [0.0] * family.hidden_size
        for t in range(x.shape[0]):
            for _ in range(family.unfolds):
                v = [unit_after(family, params, unit, v, x[t, sequence].tolist()) for unit in range(family.hidden_size)]
            assert run.states["v"][0, t, sequence].tolist() == pytest.approx(v, rel=1e-11, abs=1e-11)
            weight = params["weight_ho"] * params["mask_output"]
            read = weight @ torch.tensor(v, dtype=torch.float64) + params["bias_o"]
            torch.testing.assert_close(run.outputs[0, t, sequence], read, rtol=1e-11, atol=1e-11)


@EXAMPLES
def test_outputs_equal_those_of_the_authors_package(family):
    x, params = inputs_and_params(family)
    params["mask_output"] = torch.eye(family.output_size, family.hidden_size, dtype=torch.float64)
    cell = ltc_cell.LTCCell(
        wirings.FullyConnected(family.hidden_size, family.output_size),
        in_features=family.input_size,
        ode_unfolds=family.unfolds,
        implicit_param_constraints=True,
    ).double()
    theirs = {name: value.t() for name, value in params.items()}
    theirs = {name: theirs[name] for name in cell.state_dict() if name in theirs}
    theirs |= {"sparsity_mask": params["mask_hidden"].T, "sensory_sparsity_mask": params["mask_input"].T}
    # An affine map of the inputs is in sigma and mu.
    slope, shift = 0.5 + torch.arange(family.input_size).double(), torch.linspace(-0.3, 0.4, family.input_size).double()
    theirs |= {"input_w": slope, "input_b": shift}
    theirs["sensory_sigma"] = params["sensory_sigma"].T / slope[:, None]
    theirs["sensory_mu"] = params["sensory_mu"].T * slope[:, None] + shift[:, None]
    theirs |= {"output_w": params["weight_ho"].diagonal(), "output_b": params["bias_o"]}
    cell.load_state_dict(theirs)
    v, expected = x.new_zeros(x.shape[1], family.hidden_size), []
    for x_t in x:
        output, v = cell(x_t, v)
        expected.append(output)
    outputs = rollout(family, {name: value[None] for name, value in params.items()}, x[None]).outputs[0]
    torch.testing.assert_close(outputs, torch.stack(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("to", "source"), [(4, 4), (5, 2), (2, 5), (1, 3), (3, 1), (1, 1), (6, 7)])
def test_sums_over_pairs_are_a_matrix_product(to, source):
    weight = torch.randn(to, source, dtype=torch.float64, generator=generator(0, "m", "w"))
    x = torch.randn(3, source, dtype=torch.float64, generator=generator(0, "m", "x"))
    torch.testing.assert_close(summed(paired(x, to) * skewed(weight), to), x @ weight.T)


@EXAMPLES
def test_whole_updates_run_in_c(family):
    if native.why_not_here() is not None:
        pytest.skip("there is no compiler")
    assert native.why_not(family) is None
    assert native.can_descend_on(family)


def test_what_a_step_is_said_to_keep_covers_what_torch_keeps():
    family, models, steps, batch = LTC(input_size=1, hidden_size=12, output_size=1), 2, 4, 16
    draws = [family.init(generator(0, str(model), "init")) for model in range(models)]
    params = {name: torch.stack([draw[name] for draw in draws]).requires_grad_() for name in family.spec.tensors}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = rollout(family, params, torch.ones(models, steps, batch, 1), method="stacked").outputs
    assert outputs.requires_grad
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    said = 4 * KEPT * family.numbers_per_step * models * steps * batch
    # Gradients and what is in work take about as much again.
    assert 0.3 * said < found < 0.6 * said


def test_full_and_random_wirings_have_their_share_of_synapses_and_of_excitation():
    draws = [wired("random", 0.75, 5, 20, 3, generator(0, str(seed), "w")) for seed in range(20)]
    for part, synapses in (("sensory", 25), ("recurrent", 100)):
        signs = torch.stack([getattr(draw, part) for draw in draws])
        assert (signs != 0).flatten(1).sum(1).tolist() == [synapses] * 20
        assert (signs > 0).sum() / (signs != 0).sum() == pytest.approx(2 / 3, abs=0.06)
    full = wired("full", 0.0, 5, 20, 3, generator(0, "m", "w"))
    assert full.recurrent.abs().min() == full.sensory.abs().min() == 1


def test_an_ncp_wiring_has_layers_and_leaves_no_unit_out():
    numbers = layers(20, 4, 0.5)
    assert numbers == (6, 10, 5, 3, 6, 3)
    motor, command, inter = slice(0, 4), slice(4, 10), slice(10, 20)
    for seed in range(10):
        wiring = wired("ncp", 0.5, 3, 20, 4, generator(0, str(seed), "w"))
        sensory, recurrent = wiring.sensory.abs(), wiring.recurrent.abs()
        assert sensory[:10].sum() == 0
        assert (sensory[inter].sum(1) >= 1).all()
        assert (sensory.sum(0) >= 5).all()
        assert (recurrent[command, inter].sum(0) >= 3).all()
        assert (recurrent[command, inter].sum(1) >= 1).all()
        assert (recurrent[motor, command].sum(1) >= 3).all()
        assert (recurrent[motor, command].sum(0) >= 1).all()
        assert 1 <= recurrent[command, command].sum() <= 6
        recurrent[command, inter] = recurrent[motor, command] = recurrent[command, command] = 0
        assert recurrent.sum() == 0


def test_numbers_of_an_ncp_wiring_are_those_of_the_authors_package():
    for units, outputs, sparsity in ((20, 4, 0.5), (9, 1, 0.2), (5, 2, 0.9), (64, 8, 0.7)):
        theirs, ours = wirings.AutoNCP(units, outputs, sparsity_level=sparsity), layers(units, outputs, sparsity)
        names = ("num_command_neurons", "num_inter_neurons", "sensory_fanout", "inter_fanout")
        names = (*names, "recurrent_command_synapses", "motor_fanin")
        assert [getattr(theirs, f"_{name}") for name in names] == list(ours), units


def test_removed_synapses_hold_zeros_whatever_is_trained():
    family = LTC(input_size=3, hidden_size=8, output_size=2, wiring="ncp", sparsity=0.5)
    params = family.init(generator(0, "m", "init"))
    for name, tensor in family.spec.tensors.items():
        if tensor.mask is not None:
            assert (params[name][params[tensor.mask] == 0] == 0).all()
            assert (family.effective(params)[name][params[tensor.mask] == 0] == 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wiring": "ring"}, r"`wiring` \(='ring'\) must be one of"),
        ({"sparsity": 0.5}, r"`sparsity` \(=0.5\) of the wiring 'full' must be 0, since it has every synapse"),
        ({"wiring": "random", "sparsity": 1.0}, r"must be from 0.0 to 0.9"),
        ({"wiring": "ncp"}, r"`sparsity` \(=0.0\) of the wiring 'ncp' must be from 0.1 to 0.9"),
        ({"wiring": "ncp", "sparsity": 0.5}, r"`hidden_size` \(=4\) of LTC must be at least 5: the wiring"),
        ({"output_size": 5}, r"`hidden_size` \(=4\) of LTC must be at least 5: the wiring"),
    ],
)
def test_a_wiring_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LTC(**{"input_size": 1, "hidden_size": 4, "output_size": 2, **fields})
