"""The curse-of-memory study: fits and errors against numpy, memories of networks in closed form, its gates."""

import json

import numpy as np
import pytest
import torch

from weightspace.families.stable_reparam import PARAMETERISATIONS, StableReparam
from weightspace.rollout import generator
from weightspace.store import Stack, open_zoo
from zoo_builder.cli import main
from zoo_builder.studies import curse_of_memory as study
from zoo_builder.studies.base import Measured
from zoo_builder.studies.curse_of_memory import BETAS, CurseOfMemory, fitted_errors, memory, perturbed_errors
from zoo_builder.studies.exponential_sums import directions, fitted, spaced_rates
from zoo_builder.studies.run import run_study

LAGS = np.arange(1, 101)
RATES_OF = {
    "direct": lambda w: w,
    "exp": np.exp,
    "softplus": lambda w: np.log1p(np.exp(w)),
    "inverse": lambda w: 1 / (w**2 + 0.1),
}
W_OF = {
    "direct": lambda r: r,
    "exp": np.log,
    "softplus": lambda r: np.log(np.expm1(r)),
    "inverse": lambda r: np.sqrt(1 / r - 0.1),
}


@pytest.mark.parametrize("width", [8, 16])
def test_fits_are_as_good_as_those_of_numpy(width):
    target = (LAGS + 1.0) ** -1.1
    rates = np.geomspace(1 / 200, 4, width)
    torch.testing.assert_close(spaced_rates(width), torch.tensor(rates), rtol=1e-12, atol=0)
    exponentials = np.exp(-np.outer(LAGS, rates))
    expected, *_ = np.linalg.lstsq(exponentials, target, rcond=None)
    found = fitted(torch.tensor(rates), torch.tensor(target)).numpy()
    assert np.abs(exponentials @ found - exponentials @ expected).max() < 1e-8
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_errors_after_perturbations_equal_those_of_numpy(name):
    target, errors = (LAGS + 1.0) ** -1.1, fitted_errors()[0]
    rates = np.geomspace(1 / 200, 4, 8)
    coefficients, *_ = np.linalg.lstsq(np.exp(-np.outer(LAGS, rates)), target, rcond=None)
    moves = directions(8, torch.Generator().manual_seed(0)).numpy()
    assert np.linalg.norm(moves, axis=1) == pytest.approx(np.ones(30))
    for beta, found in zip(BETAS, errors[name, 8], strict=True):
        w = W_OF[name](rates) + beta * moves
        memories = np.exp(-LAGS[None, :, None] * RATES_OF[name](w)[:, None]) @ coefficients
        assert found == pytest.approx(np.abs(memories - target).sum(1).max(), rel=1e-3)


@pytest.mark.parametrize("seed", range(1, 5))
def test_the_gates_of_the_fits_hold_for_other_perturbations(seed):
    errors, slowest = fitted_errors(seed)
    large, small = BETAS.index(0.1), BETAS.index(1e-3)
    stable = [name for name in PARAMETERISATIONS if name != "direct"]
    assert errors["direct", 8][large] >= 100 * max(errors[name, 8][large] for name in stable)
    wider = {name: errors[name, 16][small] / errors[name, 8][small] for name in PARAMETERISATIONS}
    assert wider["direct"] > 1 >= max(wider[name] for name in stable)
    assert slowest > 0


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_the_memory_of_a_network_is_a_sum_of_powers_of_one_minus_its_rates(name):
    options = {"input_size": 1, "hidden_size": 6, "output_size": 1, "nonlinearity": "identity"}
    family = StableReparam(**options, parameterisation=name)
    params = family.init(generator(0, "m", "init"))
    stack = Stack(family, {k: v[None] for k, v in params.items()}, torch.arange(1))
    found = perturbed_errors(stack, memory("polynomial"))
    p = {k: v.double().numpy() for k, v in params.items()}
    moves = directions(6, torch.Generator().manual_seed(0)).numpy()
    for beta, error in zip(BETAS, found.tolist(), strict=True):
        rates = RATES_OF[name](p["w"] + beta * moves)
        rates = rates if name == "direct" else np.minimum(rates, 1 / family.time_step)
        weights = family.time_step * p["weight_ho"][0] * p["weight_ih"][:, 0]
        memories = ((1 - family.time_step * rates)[:, None] ** LAGS[None, :, None]) @ weights
        assert error == pytest.approx(np.abs(memories - (LAGS + 1.0) ** -1.1).sum(1).max(), rel=1e-9)


def test_the_figure_shows_both_widths_of_every_parameterisation():
    errors, _ = fitted_errors()
    trained = {(k, p): torch.rand(3, len(BETAS)) for k in ("exponential", "polynomial") for p in PARAMETERISATIONS}
    fits, *others = CurseOfMemory().draw(Measured({}, {"fits": errors, "trained": trained})).axes
    assert [line.get_label() for line in fits.lines[:2]] == ["direct, m = 8", "direct, m = 16"]
    assert list(fits.lines[1].get_ydata()) == errors["direct", 16]
    assert [len(axes.lines) for axes in others] == [4 * 4] * 2


@pytest.mark.slow
def test_a_small_study_measures_every_gate_and_draws_three_panels(tmp_path):
    small = CurseOfMemory(hidden_size=4, num_steps=8, num_updates=3, models=2)
    result = run_study(small, tmp_path)
    assert [gate["name"] for gate in result["gates"]] == [gate.name for gate in small.gates]
    assert [gate["passed"] for gate in result["gates"][:4]] == [True] * 4
    measured = small.measure({study.ZOO: open_zoo(tmp_path / "CurseOfMemory" / study.ZOO)})
    assert set(measured.curves["trained"]) == {(k, p) for k in ("exponential", "polynomial") for p in PARAMETERISATIONS}
    assert len(small.draw(measured).axes) == 3


@pytest.mark.slow
def test_the_study_passes_its_gates_in_ten_cpu_minutes(tmp_path):
    assert main(["study", "run", "CurseOfMemory", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "CurseOfMemory/result.json").read_text())["cpu_seconds"] < 600
