"""The diagonal GRU and LSTM against loops over units, and against their dense relatives."""

import numpy as np
import torch

from weightspace.families.gru import GRU
from weightspace.families.para_gru import ParaGRU
from weightspace.families.para_lstm import ParaLSTM
from weightspace.rollout import generator, rollout


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def para_gru(p: dict, x: np.ndarray) -> np.ndarray:
    """Outputs (time, output) on inputs (time, input), unit by unit."""
    size = p["bias"].shape[1]
    h, outputs = np.zeros(size), []
    for x_t in x:
        for k in range(size):
            z_x, r_x, n_x = (p["weight_ih"][g, k] @ x_t + p["bias"][g, k] for g in range(3))
            z = sigmoid(p["weight_hh"][0, k] * h[k] + z_x)
            r = sigmoid(p["weight_hh"][1, k] * h[k] + r_x)
            h[k] = (1 - z) * h[k] + z * np.tanh(p["weight_hh"][2, k] * h[k] * r + n_x)
        outputs.append(p["weight_ho"] @ h + p["bias_o"])
    return np.stack(outputs)


def para_lstm(p: dict, x: np.ndarray) -> np.ndarray:
    """Outputs (time, output) on inputs (time, input), unit by unit."""
    size = p["bias"].shape[1]
    h, c, outputs = np.zeros(size), np.zeros(size), []
    for x_t in x:
        for k in range(size):
            f_x, z_x, o_x = (p["weight_ih"][g, k] @ x_t + p["bias"][g, k] for g in range(3))
            f = sigmoid(p["weight_hh"][0, k] * h[k] + p["peephole"][0, k] * c[k] + f_x)
            c[k] = f * c[k] + (1 - f) * np.tanh(p["weight_hh"][1, k] * h[k] + z_x)
            h[k] = sigmoid(p["weight_hh"][2, k] * h[k] + p["peephole"][1, k] * c[k] + o_x) * np.tanh(c[k])
        outputs.append(p["weight_ho"] @ h + p["bias_o"])
    return np.stack(outputs)


def drawn(family) -> tuple[dict, torch.Tensor]:
    params = family.spec.random_params(generator(0, "m", "params"))
    return params, torch.randn(1, 9, 1, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))


def assert_equal_to_loop(family, reference):
    params, x = drawn(family)
    outputs = rollout(family, {k: v[None] for k, v in params.items()}, x).outputs[0, :, 0].numpy()
    expected = reference({k: v.numpy() for k, v in params.items()}, x[0, :, 0].numpy())
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)


def test_the_diagonal_gru_equals_a_loop_over_units():
    assert_equal_to_loop(ParaGRU(input_size=3, hidden_size=5, output_size=2), para_gru)


def test_the_diagonal_lstm_equals_a_loop_over_units():
    assert_equal_to_loop(ParaLSTM(input_size=3, hidden_size=5, output_size=2), para_lstm)


def test_no_unit_feels_another():
    for family in (ParaGRU(input_size=2, hidden_size=4, output_size=1), ParaLSTM.examples()[0]):
        params, x = drawn(family)
        state = family.initial_state(params, x.new_zeros(1, 0))

        def after(h, family=family, params=params, state=state, x=x):
            return family.step(params, {**state, "h": h[None]}, x[0, 0], {})["h"][0]

        jacobian = torch.autograd.functional.jacobian(after, torch.full_like(state["h"][0], 0.3))
        assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
        assert (jacobian.diagonal() != 0).all()


def test_a_diagonal_gru_without_diagonals_is_a_gru_without_recurrence():
    family = ParaGRU(input_size=3, hidden_size=5, output_size=2)
    params, x = drawn(family)
    params["weight_hh"].zero_()
    # The update gate of one is the complement of the other's, and rows r, z change places.
    flip = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    plain = {
        "weight_ih.0": params["weight_ih"][[1, 0, 2]] * flip[:, None, None],
        "weight_hh.0": torch.zeros(3, 5, 5, dtype=torch.float64),
        "bias.0": params["bias"][[1, 0, 2]] * flip[:, None],
        "bias_hn.0": torch.zeros(5, dtype=torch.float64),
        "weight_ho": params["weight_ho"],
        "bias_o": params["bias_o"],
    }
    gru = GRU(input_size=3, hidden_size=5, output_size=2)
    expected = rollout(gru, {k: v[None] for k, v in plain.items()}, x).outputs
    outputs = rollout(family, {k: v[None] for k, v in params.items()}, x).outputs
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)


def test_fresh_params_have_the_stated_scales():
    for family in (ParaGRU, ParaLSTM):
        params = family(input_size=10, hidden_size=2000, output_size=1).init(generator(0, "m", "init"))
        assert abs(params["weight_hh"].var().item() - 0.8) < 0.05
        bound = (6 / 2010) ** 0.5
        assert 0.98 * bound < params["weight_ih"].abs().max() <= bound
        assert params["bias"][0, 0] == 0
        assert params["bias"][0, -1] == -1
        assert (params["bias"][1:] == 0).all()
