"""The LSTM against torch.nn."""

import pytest
import torch

from weightspace.families.lstm import LSTM
from weightspace.rollout import generator, rollout

DEEP = LSTM(input_size=2, hidden_size=4, output_size=2, num_layers=3)


@pytest.mark.parametrize("family", [*LSTM.examples(), DEEP], ids=str)
def test_outputs_states_and_gradients_equal_those_of_torch_nn(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    module = torch.nn.LSTM(family.input_size, family.hidden_size, family.num_layers).double()
    with torch.no_grad():
        for layer in range(family.num_layers):
            for name in ("weight_ih", "weight_hh"):
                stored = params[f"{name}.{layer}"]
                getattr(module, f"{name}_l{layer}").copy_(stored.reshape(-1, stored.shape[-1]))
            getattr(module, f"bias_ih_l{layer}").copy_(params[f"bias.{layer}"].flatten())
            getattr(module, f"bias_hh_l{layer}").zero_()
    x = torch.randn(9, 4, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    hidden, (h, c) = module(x)
    expected = hidden @ params["weight_ho"].T + params["bias_o"] if family.has_readout else hidden
    leaves = {k: v[None].clone().requires_grad_() for k, v in params.items()}
    run = rollout(family, leaves, x[None])
    torch.testing.assert_close(run.outputs[0], expected, rtol=1e-12, atol=1e-12)
    for layer in range(family.num_layers):
        torch.testing.assert_close(run.final[f"h.{layer}"][0], h[layer], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(run.final[f"c.{layer}"][0], c[layer], rtol=1e-12, atol=1e-12)
    expected.square().sum().backward()
    run.outputs.square().sum().backward()
    for layer in range(family.num_layers):
        reference = getattr(module, f"weight_hh_l{layer}").grad
        ours = leaves[f"weight_hh.{layer}"].grad[0].reshape(reference.shape)
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_moved_params_move_the_states_along():
    family = LSTM(input_size=2, hidden_size=4, output_size=1, num_layers=2)
    params = family.spec.random_params(generator(0, "m", "params"))
    element = family.spec.random_element(generator(0, "m", "move"))
    moved = family.spec.act(element, params)
    x = torch.randn(1, 6, 3, 2, dtype=torch.float64, generator=generator(0, "m", "x"))
    states, states_moved = (rollout(family, {k: v[None] for k, v in p.items()}, x).final for p in (params, moved))
    expected = family.spec.act_on_state(element, {k: v[0] for k, v in states.items()})
    for name, value in expected.items():
        torch.testing.assert_close(states_moved[name][0], value, rtol=1e-12, atol=1e-12)


def test_without_a_read_out_the_outputs_are_the_last_states():
    with pytest.raises(ValueError, match=r"`output_size` \(=3\) of LSTM must be `hidden_size` \(=4\)"):
        LSTM(input_size=1, hidden_size=4, output_size=3, has_readout=False)
    family = LSTM(input_size=1, hidden_size=4, output_size=4, num_layers=2, has_readout=False)
    assert family.spec.permutable == ("hidden.0",)
    assert {gauge.axis for gauge in family.spec.gauges.values()} == {"hidden.0"}
