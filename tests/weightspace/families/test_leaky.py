"""The leaky network against a loop over neurons, and its clamped time constants."""

import numpy as np
import pytest
import torch

from weightspace.families.elman import Elman
from weightspace.families.leaky import Leaky
from weightspace.rollout import generator, rollout

FUNCTIONS = {
    "tanh": np.tanh,
    "relu": lambda v: max(v, 0.0),
    "leaky_relu": lambda v: v if v > 0 else 0.01 * v,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
}


def reference(family: Leaky, params: dict, x: np.ndarray) -> np.ndarray:
    """Outputs (time, output) on inputs (time, input), neuron by neuron."""
    p = {k: v.numpy() for k, v in params.items()}
    h, outputs = np.zeros(family.hidden_size), []
    for x_t in x:
        new = np.zeros_like(h)
        for i in range(family.hidden_size):
            drive = p["bias"][i] + p["weight_ih"][i] @ x_t
            drive += sum(p["weight_hh"][i, j] * h[j] for j in range(family.hidden_size) if j != i)
            a = 1 / max(p["tau"][i], 1)
            f = FUNCTIONS[family.nonlinearity]
            new[i] = (1 - a) * h[i] + a * f(drive) if family.function_inside else f((1 - a) * h[i] + a * drive)
        h = new
        outputs.append(p["weight_ho"] @ h + p["bias_o"])
    return np.stack(outputs)


@pytest.mark.parametrize("family", Leaky.examples(), ids=str)
def test_outputs_equal_those_of_a_loop_over_neurons(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    params["tau"][0] = 0.4
    x = torch.randn(1, 9, 1, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    outputs = rollout(family, {k: v[None] for k, v in params.items()}, x).outputs[0, :, 0]
    np.testing.assert_allclose(outputs.numpy(), reference(family, params, x[0, :, 0].numpy()), rtol=1e-12, atol=1e-12)


def test_effective_params_are_clamped_without_self_connections_and_compute_the_same():
    family = Leaky(input_size=2, hidden_size=4, output_size=1)
    params = family.spec.random_params(generator(0, "m", "params"))
    params["tau"] = torch.tensor([0.3, 1.0, 2.5, -4.0], dtype=torch.float64)
    used = family.effective(params)
    assert used["tau"].tolist() == [1.0, 1.0, 2.5, 1.0]
    assert torch.equal(used["weight_hh"].diagonal(), torch.zeros(4, dtype=torch.float64))
    stack = {k: torch.stack([params[k], used[k]]) for k in params}
    x = torch.randn(1, 5, 3, 2, dtype=torch.float64, generator=generator(0, "m", "x")).expand(2, -1, -1, -1)
    outputs = rollout(family, stack, x).outputs
    assert torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("inside", [False, True])
def test_time_constants_of_one_leave_an_elman_network(inside):
    leaky = Leaky(input_size=2, hidden_size=4, output_size=1, nonlinearity="tanh", function_inside=inside)
    params = leaky.spec.random_params(generator(0, "m", "params"))
    params = leaky.effective(params | {"tau": torch.ones(4, dtype=torch.float64)})
    names = {"weight_ih": "weight_ih.0", "weight_hh": "weight_hh.0", "bias": "bias.0"}
    plain = {names.get(k, k): v[None] for k, v in params.items() if k != "tau"}
    x = torch.randn(1, 6, 3, 2, dtype=torch.float64, generator=generator(0, "m", "x"))
    expected = rollout(Elman(input_size=2, hidden_size=4, output_size=1), plain, x).outputs
    outputs = rollout(leaky, {k: v[None] for k, v in params.items()}, x).outputs
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)


def test_fresh_time_constants_lie_between_one_and_two():
    tau = Leaky(input_size=1, hidden_size=500, output_size=1).init(generator(0, "m", "init"))["tau"]
    assert 1 <= tau.min() < 1.02
    assert 1.98 < tau.max() <= 2


def test_an_unknown_nonlinearity_is_refused():
    with pytest.raises(ValueError, match=r"`nonlinearity` \(='gelu'\) of Leaky must be one of \('leaky_relu', 'relu'"):
        Leaky(input_size=1, hidden_size=2, output_size=1, nonlinearity="gelu")
