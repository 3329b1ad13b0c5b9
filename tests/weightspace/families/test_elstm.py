"""The element-wise LSTM against a loop over units, and its exact temporal Jacobian in closed form."""

import numpy as np
import torch

from weightspace.families.elstm import ELSTM
from weightspace.rollout import generator, rollout
from weightspace.rollout.tangents import jacobians

FAMILY = ELSTM(input_size=3, hidden_size=5, output_size=2)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def reference(params, x):
    """Outputs (time, output) on inputs (time, input), and dc'/dc (time, hidden) by the paper's formula."""
    p = {k: v.numpy() for k, v in params.items()}
    size = p["bias"].shape[1]
    c, outputs, decays = np.zeros(size), [], []
    for x_t in x:
        decay = np.zeros(size)
        for k in range(size):
            f = sigmoid(p["weight_ih"][0, k] @ x_t + p["weight_hh"][0, k] * c[k] + p["bias"][0, k])
            z = np.tanh(p["weight_ih"][1, k] @ x_t + p["weight_hh"][1, k] * c[k] + p["bias"][1, k])
            by_f, by_z = (c[k] - z) * f * (1 - f), (1 - f) * (1 - z**2)
            decay[k] = f + p["weight_hh"][0, k] * by_f + p["weight_hh"][1, k] * by_z
            c[k] = f * c[k] + (1 - f) * z
        h = c * sigmoid(p["gate_ih"] @ x_t + p["gate_hh"] @ c + p["gate_bias"])
        outputs.append(p["weight_ho"] @ h + p["bias_o"])
        decays.append(decay)
    return np.stack(outputs), np.stack(decays)


def drawn():
    params = FAMILY.spec.random_params(generator(0, "m", "params"))
    return params, torch.randn(1, 9, 1, 3, dtype=torch.float64, generator=generator(0, "m", "x"))


def test_outputs_equal_those_of_a_loop_over_units():
    params, x = drawn()
    outputs = rollout(FAMILY, {k: v[None] for k, v in params.items()}, x).outputs[0, :, 0].numpy()
    np.testing.assert_allclose(outputs, reference(params, x[0, :, 0].numpy())[0], rtol=1e-12, atol=1e-12)


def test_cells_feel_only_themselves_by_the_papers_factor_and_no_step_reads_h():
    params, x = drawn()
    stacked = {k: v[None] for k, v in params.items()}
    state = {name: x.new_zeros(1, 1, 5) for name in ("c", "h")}
    found = jacobians(FAMILY, stacked, x, state, {})[0, :, 0].numpy()
    cells = found[:, :5, :5]
    decays = np.diagonal(cells, axis1=1, axis2=2)
    np.testing.assert_allclose(decays, reference(params, x[0, :, 0].numpy())[1], rtol=1e-12)
    assert (cells[:, ~np.eye(5, dtype=bool)] == 0).all()
    assert (found[:, :, 5:] == 0).all()
    # The gate mixes cells within a step.
    assert (found[:, 5:, :5] != 0).all()


def test_fresh_params_have_the_stated_scales():
    params = ELSTM(input_size=10, hidden_size=2000, output_size=1, forget_bias=1.5).init(generator(0, "m", "init"))
    assert abs(params["weight_ih"].std().item() - 0.1) < 0.002
    assert abs(params["weight_hh"].std().item() - 0.1) < 0.005
    assert abs(params["bias"][0].mean().item() - 1.5) < 0.01
    assert abs(params["bias"][1].mean().item()) < 0.01
    for name, fan in (("gate_ih", 10), ("gate_hh", 2000), ("weight_ho", 2000)):
        assert 0.98 * fan**-0.5 < params[name].abs().max() <= fan**-0.5
