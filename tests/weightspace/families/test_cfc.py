"""Closed-form continuous-time networks against the authors' package, and neuron by neuron."""

import math

import pytest
import torch

from weightspace.families.cfc import CfC
from weightspace.rollout import generator, rollout

EXAMPLES = pytest.mark.parametrize("family", CfC.examples(), ids=str)


def inputs_and_params(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    return torch.randn(6, 3, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x")), params


def states_of(family, params, x):
    return rollout(family, {name: value[None] for name, value in params.items()}, x[None]).states["h"][0]


def drives(params, row, unit, x, h):
    """W_ih x + W_hh h + b of one unit, of one row where there are several."""
    weight_ih, weight_hh, bias = (params[name] if row is None else params[name][row] for name in
                                  ("weight_ih", "weight_hh", "bias"))  # fmt: skip
    total = float(bias[unit])
    total += sum(float(weight_ih[unit, j]) * x[j] for j in range(len(x)))
    return total + sum(float(weight_hh[unit, j]) * h[j] for j in range(len(h)))


def unit_after(family, params, unit, x, h):
    """One unit's state after one step, in plain numbers."""
    if family.mode == "pure":
        u, a, w = drives(params, None, unit, x, h), float(params["amplitude"][unit]), float(params["w_tau"][unit])
        return -a * math.exp(-(abs(w) + abs(u))) * u + a
    one, other, gate = (drives(params, row, unit, x, h) for row in range(3))
    t = 1 / (1 + math.exp(-gate))
    first = math.tanh(one) if family.mode == "no_gate" else (1 - t) * math.tanh(one)
    return first + t * math.tanh(other)


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
    cells = pytest.importorskip("ncps.torch.cfc_cell", reason="needs ncps")
    x, params = inputs_and_params(family)
    cell = cells.CfCCell(family.input_size, family.hidden_size, mode=family.mode, backbone_layers=0).double()
    weight = torch.cat([params["weight_ih"], params["weight_hh"]], -1)
    if family.mode == "pure":
        values = {"ff1.weight": weight, "ff1.bias": params["bias"]}
        values |= {"w_tau": params["w_tau"][None], "A": params["amplitude"][None]}
    else:
        # The package adds two maps, of which any shares will do.
        rows = {"ff1": (0, 1.0), "ff2": (1, 1.0), "time_a": (2, 0.3), "time_b": (2, 0.7)}
        values = {f"{name}.weight": weight[row] * share for name, (row, share) in rows.items()}
        values |= {f"{name}.bias": params["bias"][row] * share for name, (row, share) in rows.items()}
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
    for row, variance in enumerate((1, 1, 2)):
        weight = torch.cat([params["weight_ih"][row], params["weight_hh"][row]], -1)
        assert weight.var().item() == pytest.approx(variance * bound**2 / 3, rel=0.05)
    assert params["weight_hh"][:2].abs().max() <= bound


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"`mode` \(='gated'\) of CfC must be one of \('default', 'no_gate', 'pure'\)"):
        CfC(input_size=1, hidden_size=2, output_size=1, mode="gated")
