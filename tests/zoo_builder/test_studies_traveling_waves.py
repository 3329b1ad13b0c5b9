"""The study of traveling waves: networks that are the law in another basis, and a small run."""

import itertools
import json

import pytest
import torch

from weightspace.rollout import generator
from zoo_builder.studies.run import run_study
from zoo_builder.studies.traveling_waves import LAWS, SILENT, UNTRAINED, TravelingWaves
from zoo_builder.studies.wave_basis import (
    argument_errors,
    markov_parameters,
    persistent,
    silence,
    wave_basis,
    wave_of,
)
from zoo_builder.tasks.variable_binding import VariableBinding

SIZE, HIDDEN, RHO = 8, 20, 1.05
COPY = VariableBinding()


def planted(task, rho=RHO):
    """W_hh = rho Psi Phi Psi^+ with a random Psi, which writes its newest block and reads it."""
    basis = torch.randn(HIDDEN, SIZE, dtype=torch.float64, generator=generator(0, "m", "basis"))
    back = torch.linalg.pinv(basis)
    d = task.num_values
    across = rho * basis @ task.transition @ back
    return {"weight_ih.0": basis[:, -d:], "weight_hh.0": across, "weight_ho": back[-d:]}


@pytest.mark.parametrize("law", LAWS)
def test_a_law_in_another_basis_passes_every_measure(law):
    task = VariableBinding(**LAWS[law])
    params = planted(task)
    into, across, out = (value[None] for value in params.values())
    values = torch.linalg.eigvals(across)
    expected = persistent(torch.linalg.eigvals(task.transition))
    assert len(persistent(values[0])) == len(expected)
    assert argument_errors(values, expected).item() < 1e-6
    markov = markov_parameters(into, across, out, 12)
    assert silence(markov, task).item() < 1e-9
    newest = torch.eye(SIZE, dtype=torch.float64)[:, -2:]
    for lag in range(1, 13):
        law_alone = newest.T @ torch.linalg.matrix_power(task.transition, lag) @ newest
        torch.testing.assert_close(markov[0, lag - 1], RHO**lag * law_alone, rtol=1e-9, atol=1e-9)


def test_in_the_basis_from_read_out_and_recurrence_a_network_is_its_law():
    params = planted(COPY)
    psi, rho = wave_basis(params["weight_hh.0"], params["weight_ho"], COPY)
    assert rho.item() == pytest.approx(RHO)
    torch.testing.assert_close(params["weight_ho"] @ psi[:, -2:], torch.eye(2, dtype=torch.float64))
    turned = torch.linalg.pinv(psi) @ params["weight_hh.0"] @ psi / rho
    torch.testing.assert_close(turned, COPY.transition, rtol=1e-8, atol=1e-8)
    params["weight_hh.0"] += 0.05 * torch.randn(HIDDEN, HIDDEN, generator=generator(0, "m", "other"))
    psi, rho = wave_basis(params["weight_hh.0"], params["weight_ho"], COPY)
    turned = torch.linalg.pinv(psi) @ params["weight_hh.0"] @ psi / rho
    assert (turned - COPY.transition).norm() > 0.1


def test_in_the_basis_what_is_shown_travels_from_step_to_step():
    params = planted(COPY, rho=1.0)
    scaled = {name: value * (1e-4 if name == "weight_ih.0" else 1) for name, value in params.items()}
    wave = wave_of(scaled, COPY) * 1e4
    # So small states that tanh is the identity.
    torch.testing.assert_close(wave[4:], wave[3:-1].roll(-2, 1), rtol=1e-4, atol=1e-5)
    assert wave[3:].norm(dim=1).min() > 1


def test_arguments_are_matched_so_that_the_sum_of_distances_is_least():
    draws = torch.rand(2, 5, dtype=torch.float64, generator=generator(0, "m", "angles")) * 6.28
    values, expected = torch.polar(1 + draws[0] / 7, draws[0]), torch.polar(torch.ones_like(draws[1]), draws[1])
    distances = (values[:, None] * expected.conj()).angle().abs()
    best = min(sum(distances[i, j].item() for i, j in enumerate(order)) for order in itertools.permutations(range(5)))
    assert argument_errors(values[None], expected).item() == pytest.approx(best / 5)


def test_a_response_between_the_multiples_of_s_is_heard():
    params = planted(COPY)
    into, across, out = (value[None] for value in params.values())
    markov = markov_parameters(into, across, out, 12)
    markov[0, 4] = 0.3
    assert silence(markov, COPY).item() == pytest.approx(0.3 / RHO**4)


def test_a_small_run_leaves_a_result_and_networks_that_learn_nothing_fail(tmp_path):
    result = run_study(TravelingWaves(hidden_size=10, num_updates=2, models=2), tmp_path)
    assert not result["passed"]
    verdicts = {gate["name"]: gate["passed"] for gate in result["gates"]}
    assert verdicts[UNTRAINED]
    assert sum(verdicts.values()) <= 1 + verdicts[SILENT]
    assert json.loads((tmp_path / "TravelingWaves/result.json").read_text()) == result
    assert (tmp_path / "TravelingWaves/figure.png").read_bytes().startswith(b"\x89PNG")
