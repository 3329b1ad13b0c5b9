"""The Lyapunov spectrum and the Kaplan-Yorke dimension against closed forms."""

import math

import pytest
import torch

from tests.zoo_builder.linear_family import Linear, shift_register
from weightspace.families.gru import GRU
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.driven import WINDOW
from zoo_builder.labels.lyapunov import ALIGNING, MAX_EXPONENTS, SPECTRUM_TRAJECTORIES, kaplan_yorke, spectrum
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall


def measure(matrices):
    """Labels of linear networks with these matrices (models, n, n)."""
    ids = [str(i) for i in range(len(matrices))]
    family = Linear(input_size=1, hidden_size=matrices.shape[1], output_size=1)
    params = {name: value.double() for name, value in fresh_params(family, 0, ids).items()}
    return labels.measure(["LyapunovSpectrum"], family, params | {"a": matrices}, None, Members(0, ids))


def test_a_linear_network_has_the_logarithms_of_its_eigenvalues():
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    growing, still = ([2.0, 0.4, 0.1], [0.9, 0.3, 0.01])
    found = measure(torch.stack([turn @ torch.diag(torch.tensor(v).double()) @ turn.T for v in (growing, still)]))
    for place in range(3):
        expected = [math.log(growing[place]), math.log(still[place])]
        assert found[f"lyapunov_{place + 1}"].tolist() == pytest.approx(expected, abs=1e-6)
    assert "lyapunov_4" not in found
    assert found["num_positive_lyapunov"].tolist() == [1, 0]
    # ln 2 + ln 0.4 is below 0, so the dimension lies between 1 and 2.
    assert found["kaplan_yorke_dimension"].tolist() == pytest.approx([1 + math.log(2) / -math.log(0.4), 0], abs=1e-6)


def test_directions_that_vanish_have_no_exponent_and_add_no_dimension():
    rank_one = torch.zeros(3, 3, dtype=torch.float64)
    rank_one[0] = torch.tensor([1.5, 0.7, -0.4])
    found = measure(torch.stack([rank_one, shift_register(3, 1.0)[1]["a"].double()]))
    assert found["lyapunov_1"][0].item() == pytest.approx(math.log(1.5))
    assert found["lyapunov_1"][1].isnan()
    assert found["lyapunov_2"].isnan().all()
    assert found["num_positive_lyapunov"].tolist() == [1, 0]
    assert found["kaplan_yorke_dimension"].tolist() == [1, 0]


def test_kaplan_yorke_dimensions_by_hand():
    exponents = torch.tensor([[0.5, 0.1, -0.4, -1.0], [0.3, 0.2, 0.1, -0.1], [-0.1, -0.2, -0.3, -0.4]])
    # 0.5 + 0.1 - 0.4 = 0.2 is not negative, less 1.0 it is.
    assert kaplan_yorke(exponents, 4).tolist() == pytest.approx([3.2, 4, 0])
    wider = kaplan_yorke(exponents, 9)
    assert wider[[0, 2]].tolist() == pytest.approx([3.2, 0])
    assert wider[1].isnan()


@pytest.mark.parametrize("hidden_size", [3, MAX_EXPONENTS + 2])
def test_the_first_exponent_is_the_growth_of_one_vector_and_all_add_up_to_the_determinant(hidden_size):
    family, ids = GRU(input_size=1, hidden_size=hidden_size, output_size=2), ["a", "b"]
    driven = Driven(family, fresh_params(family, 0, ids), DelayedRecall(), Members(0, ids))
    exponents, finite = spectrum(driven)
    assert finite.all()
    assert exponents.shape == (2, min(hidden_size, MAX_EXPONENTS))
    assert (exponents.diff() <= 0).all()
    measured = labels.measure(["LyapunovSpectrum", "Dynamics"], family, driven.params, DelayedRecall(), Members(0, ids))
    torch.testing.assert_close(measured["lyapunov_1"], measured["largest_lyapunov"], rtol=0, atol=0.05)
    if hidden_size < MAX_EXPONENTS:
        logs = []
        for t in range(ALIGNING, WINDOW):
            before = driven.trajectory.before[:, t, :SPECTRUM_TRAJECTORIES].contiguous()
            jacobians = driven.jacobians_at(before, driven.trajectory.x[:, t, :SPECTRUM_TRAJECTORIES].contiguous(), {})
            logs.append(torch.linalg.slogdet(jacobians).logabsdet)
        torch.testing.assert_close(exponents.sum(1), torch.stack(logs).mean((0, 2)), rtol=1e-8, atol=1e-8)
