"""Labels at the edges: states that stand still but for rounding, medians of few units, spectra that are not found."""

import math

import pytest
import torch

from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.leaky import Leaky
from weightspace.families.lru import LRU
from weightspace.families.lstm import LSTM
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.activity import dimension
from zoo_builder.labels.network_timescale import network_timescales
from zoo_builder.labels.sparsity import participation
from zoo_builder.labels.spectra import or_nan, spectral_radius
from zoo_builder.labels.waves import waves
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members

IDS = ["a", "b"]
METHODS = ("stacked", "native")


def with_a_bias_alone(family, bias):
    """Params of models whose units neither read one another nor the input."""
    fresh = fresh_params(family, 0, IDS)
    return {name: torch.full_like(value, bias if "bias" in name else 0.0) for name, value in fresh.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family_class", [Elman, GRU])
@pytest.mark.parametrize("bias", [0.3, -0.7])
def test_states_that_stand_still_fill_no_direction(family_class, bias, method):
    family = family_class(input_size=1, hidden_size=4, output_size=1)
    names = ["Rank", "Activity", "Quiescence"]
    measured = labels.measure(names, family, with_a_bias_alone(family, bias), None, Members(0, IDS), method)
    of_states = {name: column for name, column in measured.items() if name.startswith(("state_", "quiescent_", "a"))}
    assert len(of_states) == 8
    assert {name for name, column in of_states.items() if not column.isnan().all()} == set()


@pytest.mark.parametrize("method", METHODS)
def test_states_that_vary_along_one_direction_have_rank_one_however_little_they_vary(method):
    family = Elman(input_size=1, hidden_size=4, output_size=1)
    params = with_a_bias_alone(family, 0.3)
    params["weight_ih.0"][0] = 1e-4
    params["weight_ih.0"][1, 0] = 1e-4
    measured = labels.measure(["Rank", "Activity"], family, params, None, Members(0, IDS), method)
    assert measured["state_effective_rank"].tolist() == pytest.approx([0.25, 0.25], rel=1e-3)
    assert measured["activity_dimension"].tolist() == [1, 1]


def test_a_constant_has_no_dimension_and_a_small_motion_beside_it_has():
    still = torch.full((1, 1536, 3), 0.1, dtype=torch.float64)
    moving = still.clone()
    moving[:, ::2, 1] += 1e-9
    assert dimension(still).isnan().all()
    assert dimension(moving).tolist() == [1]


def test_the_time_constant_of_an_even_number_of_units_is_that_of_the_middle_of_two():
    family = LRU(input_size=2, hidden_size=4, output_size=1, min_radius=0.3, max_radius=0.95)
    params = fresh_params(family, 0, IDS)
    measured = labels.measure(["UnitLyapunov"], family, params, None, Members(0, IDS))
    middle = (-params["nu"].double().exp()).sort(1).values[:, 1:3].mean(1)
    torch.testing.assert_close(measured["unit_time_constant"], -1 / middle, rtol=1e-9, atol=0)


def test_a_median_unit_that_forgets_at_once_has_no_time_constant():
    family = LRU(input_size=1, hidden_size=4, output_size=1)
    params = fresh_params(family, 0, IDS)
    params["nu"][0, :2] = 9.0
    measured = labels.measure(["UnitLyapunov"], family, params, None, Members(0, IDS))
    assert measured["unit_time_constant"].isnan().tolist() == [True, False]
    assert measured["unit_lyapunov_largest"].isfinite().all()


def test_the_median_time_scale_of_two_units_is_between_them():
    family = Leaky(input_size=1, hidden_size=2, output_size=2)
    params = {name: torch.zeros(2, *family.spec.shape(name)) for name in family.spec.tensors}
    params["weight_ih"][:], params["tau"][:] = 1.0, torch.tensor([2.0, 12.0])
    members = Members(0, IDS)
    each = network_timescales(Driven(family, params, None, members))
    measured = labels.measure(["NetworkTimescale"], family, params, None, members)["network_timescale_median"]
    torch.testing.assert_close(measured, each.mean(1))
    assert measured[0].item() > 2 * -1 / math.log(1 - 1 / 2)


def unless_7(matrix):
    if bool((matrix == 7).any()):
        raise torch.linalg.LinAlgError("it does not converge")
    return torch.linalg.eigvals(matrix)


def test_a_matrix_without_convergence_spares_the_others():
    matrices = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.eigvals(matrices)
    matrices[1, 2, 0, 0] = 7
    measured = or_nan(unless_7, matrices)
    assert measured.isnan().all(-1).nonzero().tolist() == [[1, 2]]
    assert torch.equal(measured[0], expected[0])
    assert torch.equal(measured[1, :2], expected[1, :2])


def test_labels_of_spectra_are_null_where_a_routine_does_not_converge(monkeypatch):
    real = torch.linalg.eig
    monkeypatch.setattr(torch.linalg, "eig", lambda m: (unless_7(m), real(m)[1]))
    matrices = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = participation(matrices[:1]), waves(matrices[:1])
    matrices[1, 0, 0] = 7
    measured = participation(matrices)
    assert all(column.isnan().tolist() == [False, True] for column in measured.values())
    assert all(torch.equal(measured[name][:1], column) for name, column in alone[0].items())
    whole = torch.linalg.eigvals
    monkeypatch.setattr(torch.linalg, "eigvals", lambda m: whole(m) if not bool((m == 7).any()) else unless_7(m))
    assert waves(matrices)["persistent_eigenvalues"].isnan().tolist() == [False, True]
    assert spectral_radius(matrices).isnan().tolist() == [False, True]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_huge_params_does_not_stop_the_labels_of_the_others(method):
    family, ids = LSTM(input_size=2, hidden_size=4, output_size=2), ["a", "b", "c"]
    params = fresh_params(family, 0, ids)
    scales = torch.tensor([1.0, 1e3, 1e20])
    huge = {name: value * scales.reshape(-1, *[1] * (value.dim() - 1)) for name, value in params.items()}
    names = ["FixedPoints", "Dynamics", "SlowestRate"]
    measured = labels.measure(names, family, huge, None, Members(0, ids), method)
    alone = labels.measure(names, family, params, None, Members(0, ids), method)
    assert all(torch.equal(measured[name][:1], alone[name][:1]) for name in measured)
