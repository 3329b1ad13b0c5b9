"""The minimal gated unit against a plain loop."""

import numpy as np
import torch

from weightspace.families.mgu import MGU
from weightspace.rollout import generator, rollout


def reference(params: dict, x: np.ndarray) -> np.ndarray:
    """Outputs (time, output) on inputs (time, input), by the paper's equations on [h, x]."""
    p = {k: v.numpy() for k, v in params.items()}
    joint = np.concatenate([p["weight_hh"], p["weight_ih"]], axis=2)
    h, outputs = np.zeros(p["bias"].shape[1]), []
    for x_t in x:
        f = 1 / (1 + np.exp(-(joint[0] @ np.concatenate([h, x_t]) + p["bias"][0])))
        n = np.tanh(joint[1] @ np.concatenate([f * h, x_t]) + p["bias"][1])
        h = (1 - f) * h + f * n
        outputs.append(p["weight_ho"] @ h + p["bias_o"])
    return np.stack(outputs)


def test_outputs_equal_those_of_a_plain_loop():
    family = MGU(input_size=3, hidden_size=5, output_size=2)
    params = family.spec.random_params(generator(0, "m", "params"))
    x = torch.randn(1, 9, 1, 3, dtype=torch.float64, generator=generator(0, "m", "x"))
    outputs = rollout(family, {k: v[None] for k, v in params.items()}, x).outputs[0, :, 0]
    np.testing.assert_allclose(outputs.numpy(), reference(params, x[0, :, 0].numpy()), rtol=1e-12, atol=1e-12)


def test_an_open_gate_forgets_and_a_closed_gate_holds():
    family = MGU(input_size=1, hidden_size=3, output_size=1)
    params = family.spec.random_params(generator(0, "m", "params"))
    x, state = torch.ones(1, 1, dtype=torch.float64), {"h": torch.full((1, 3), 0.3, dtype=torch.float64)}
    params["bias"][0] = -1e3
    assert torch.equal(family.step(params, state, x, {})["h"], state["h"])
    params["bias"][0] = 1e3
    other = {"h": -state["h"]}
    params["weight_hh"][1] = 0.0
    torch.testing.assert_close(family.step(params, state, x, {})["h"], family.step(params, other, x, {})["h"])
