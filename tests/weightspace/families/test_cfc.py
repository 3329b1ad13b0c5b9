"""Closed-form continuous-time networks against the authors' package, and neuron by neuron."""

import math

import pytest
import torch
from ncps.torch import cfc_cell

from weightspace.families.cfc import CfC
from weightspace.rollout import generator, rollout

EXAMPLES = pytest.mark.parametrize("family", CfC.examples(), ids=str)


def inputs_and_params(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    return torch.randn(6, 3, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x")), params


def states_of(family, params, x):
    return rollout(family, {name: value[None] for name, value in params.items()}, x[None]).states["h"][0]


def drive(weights, unit, x, h):
    """W_ih x + W_hh h + b of one unit."""
    from_input, from_units, bias = (weight[unit].tolist() for weight in weights)
    return bias + sum(a * b for a, b in zip([*from_input, *from_units], [*x, *h], strict=True))


def unit_after(family, params, unit, x, h):
    """One unit's state after one step, in plain numbers."""
    maps = [params[name] for name in ("weight_ih", "weight_hh", "bias")]
    if family.mode == "pure":
        u, a, w = drive(maps, unit, x, h), float(params["amplitude"][unit]), float(params["w_tau"][unit])
        return -a * math.exp(-(abs(w) + abs(u))) * u + a
    f_1, f_2 = (math.tanh(drive([part[row] for part in maps], unit, x, h)) for row in range(2))
    gate = drive([params[name] for name in ("gate_ih", "gate_hh", "gate_bias")], unit, x, h)
    t = 1 / (1 + math.exp(-gate))
    return f_1 + t * f_2 if family.mode == "no_gate" else (1 - t) * f_1 + t * f_2


@EXAMPLES
def test_units_follow_the_equations_one_by_one(family):
    x, params = inputs_and_params(family)
    found = states_of(family, params, x)
    for sequence in range(x.shape[1]):
        h = [0.0] * family.hidden_size
        for t in range(x.shape[0]):
            h = [unit_after(family, params, unit, x[t, sequence].tolist(), h) for unit in range(family.hidden_size)]
            assert found[t, sequence].tolist() == pytest.approx(h, rel=1e-12, abs=1e-12)


@EXAMPLES
def test_states_equal_those_of_the_authors_package(family):
    x, params = inputs_and_params(family)
    cell = cfc_cell.CfCCell(family.input_size, family.hidden_size, mode=family.mode, backbone_layers=0).double()
    weight = torch.cat([params["weight_ih"], params["weight_hh"]], -1)
    if family.mode == "pure":
        values = {"ff1.weight": weight, "ff1.bias": params["bias"]}
        values |= {"w_tau": params["w_tau"][None], "A": params["amplitude"][None]}
    else:
        # The package adds two maps, of which any shares will do.
        gate = torch.cat([params["gate_ih"], params["gate_hh"]], -1)
        shares = {"ff1": (weight[0], params["bias"][0], 1), "ff2": (weight[1], params["bias"][1], 1)}
        shares |= {name: (gate, params["gate_bias"], share) for name, share in (("time_a", 0.3), ("time_b", 0.7))}
        values = {f"{name}.weight": w * share for name, (w, _, share) in shares.items()}
        values |= {f"{name}.bias": b * share for name, (_, b, share) in shares.items()}
    cell.load_state_dict(values)
    h, expected = x.new_zeros(x.shape[1], family.hidden_size), []
    for x_t in x:
        h = cell(x_t, h, 1.0)[1]
        expected.append(h)
    torch.testing.assert_close(states_of(family, params, x), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_initial_weights_have_the_spread_of_the_package():
    family = CfC(input_size=20, hidden_size=60, output_size=1)
    params = family.init(generator(0, "m", "init"))
    bound = math.sqrt(6 / (20 + 60 + 60))
    joint = torch.cat([params["weight_ih"], params["weight_hh"]], -1)
    gate = torch.cat([params["gate_ih"], params["gate_hh"]], -1)
    for weight, variance in ((joint[0], 1), (joint[1], 1), (gate, 2)):
        assert weight.var().item() == pytest.approx(variance * bound**2 / 3, rel=0.05)
    assert joint.abs().max() <= bound


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"`mode` \(='gated'\) of CfC must be one of \('default', 'no_gate', 'pure'\)"):
        CfC(input_size=1, hidden_size=2, output_size=1, mode="gated")
