"""The study of parallel time: exponents and orders in closed form, its zoos, tables and figure, its gates."""

import json
import math

import pytest
import scipy.stats
import torch

from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.lru import LRU
from weightspace.rollout import Streams, generator
from weightspace.store import open_zoo
from zoo_builder.cli import main
from zoo_builder.studies import parallel_speed
from zoo_builder.studies import parallel_time as study
from zoo_builder.studies.base import Measured
from zoo_builder.studies.newton_runs import (
    Solved,
    driven_jacobians,
    gradient_difference,
    growth,
    orders,
    rank_correlation,
    solved,
)
from zoo_builder.studies.parallel_speed import COHORTS, METHODS, speed_table
from zoo_builder.studies.parallel_time import GAINS, ParallelTime
from zoo_builder.studies.run import run_study
from zoo_builder.tasks.base import Batch
from zoo_builder.tasks.chirps import Chirps


def stacked(family, count=3):
    drawn = [family.init(generator(0, str(model), "init")) for model in range(count)]
    return {name: torch.stack([one[name] for one in drawn]).double() for name in family.spec.tensors}


def test_the_exponent_of_a_saturated_network_is_that_of_the_derivative_of_tanh():
    family, params = Elman(input_size=1, hidden_size=1, output_size=1, bias=False), {}
    params = {name: torch.ones(2, *family.spec.shape(name), dtype=torch.float64) for name in family.spec.tensors}
    params["weight_hh.0"] *= torch.tensor([0.3, 1.7], dtype=torch.float64)[:, None, None]
    x = torch.randn(2, 40, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for model, weight in enumerate((0.3, 1.7)):
        h, total = 0.0, 0.0
        for value in x[model, :, 0, 0].tolist():
            h = math.tanh(weight * h + value)
            total += math.log(weight * (1 - h * h))
        assert growth(driven_jacobians(family, params, x))[model].item() == pytest.approx(total / 40, rel=1e-9)


def test_the_exponent_of_a_linear_network_is_the_log_of_its_largest_eigenvalue():
    family = LRU(input_size=1, hidden_size=4, output_size=1)
    params = stacked(family)
    x = torch.zeros(3, 400, 1, 1, dtype=torch.float64)
    eye = torch.eye(family.spec.state_size, dtype=torch.float64)
    for model in range(3):
        one = {name: value[model] for name, value in params.items()}

        def step(flat, one=one):
            state = dict(zip(family.spec.states, flat.chunk(len(family.spec.states), dim=-1), strict=True))
            return torch.cat(list(family.step(one, state, x.new_zeros(len(flat), 1), {}).values()), dim=-1)

        radius = torch.linalg.eigvals(step(eye) - step(0 * eye)).abs().max()
        # The Frobenius norm of a power of a normal matrix is at most the root of its size times that of the radius.
        difference = growth(driven_jacobians(family, params, x))[model] - radius.log()
        assert 0 <= difference + 1e-12 <= math.log(family.spec.state_size) / 2 / 400 + 2e-12


def test_orders_are_those_of_sequences_in_closed_form():
    quadratic = [0.1 ** (2**k) for k in range(4)] + [1e-17]
    linear = [0.5**k for k in range(5)]
    residuals = torch.tensor([quadratic, linear, [0.3, 1e-9, torch.nan, torch.nan, torch.nan]], dtype=torch.float64)
    found = orders(residuals)
    assert found[:2].tolist() == pytest.approx([2, 1])
    assert found[2].isnan()


def test_rank_correlation_is_that_of_scipy_with_ties():
    source = torch.Generator().manual_seed(0)
    one = torch.randint(0, 5, (40,), generator=source).double()
    other = one + 2 * torch.randn(40, generator=source, dtype=torch.float64)
    assert rank_correlation(one, other) == pytest.approx(scipy.stats.spearmanr(one, other).statistic)


def test_stable_networks_are_solved_exactly_and_with_the_gradients_of_the_loop():
    family, task = GRU(input_size=1, hidden_size=4, output_size=4), Chirps(num_steps=40, chirp_steps=8)
    params = stacked(family)
    batch = task.sample({}, Streams(0, ["0", "1", "2"], "t"), 1, "test")
    batch = Batch(batch.x.double(), batch.start.double(), batch.target)
    run = solved(family, params, batch.x)
    assert (run.exponent < 0).all()
    along = driven_jacobians(family, params, batch.x)
    # Of 40 steps there is one whole stretch of 32.
    torch.testing.assert_close(run.fastest, growth(along[:, :32]), rtol=1e-12, atol=0)
    assert run.difference.max() < 1e-10
    assert run.prefix.max() < 1e-12
    assert run.iterations.max() < 12
    assert 0 < gradient_difference(task, family, params, batch) < 1e-9


def test_the_speed_table_says_what_each_method_took(monkeypatch):
    monkeypatch.setattr(parallel_speed, "LARGEST", 8 * 4 * 16 * 4 - 1)
    monkeypatch.setattr(parallel_speed, "REPEATS", 1)
    one, many = rows = speed_table(steps=(16,), units=(2,))
    assert [row["models x sequences"] for row in rows] == [f"{models} x {sequences}" for models, sequences in COHORTS]
    assert all(one[f"{name} ms"] > 0 for name in METHODS)
    assert one["native / deer"] == pytest.approx(one["native ms"] / one["deer ms"])
    assert 1 <= one["iterations"] <= 16
    assert [many[name] for name in ("deer ms", "quasi_deer MB", "iterations", "stacked / deer")] == [None] * 4
    assert many["native ms"] > 0
    json.dumps(rows, allow_nan=False)


def test_the_figure_has_a_point_for_each_network_and_a_cell_for_each_row():
    some = Solved(torch.randn(4), torch.randn(4), torch.arange(1, 5), torch.rand(4, 6), torch.rand(4), torch.rand(4))
    speed = [
        {"models x sequences": cohort, "units": 2, "steps": steps, "stacked / deer": ratio, "native / deer": ratio}
        for cohort in ("1 x 1", "8 x 4")
        for steps, ratio in ((16, 2.0), (64, None))
    ]
    curves = {"random": dict.fromkeys(GAINS, some), "trained": some, "accuracy": 0.9, "speed": speed}
    iterations, residuals, *heat = ParallelTime().draw(Measured({}, curves)).axes
    assert [len(points.get_offsets()) for points in iterations.collections] == [4 * len(GAINS), 4]
    assert len(residuals.lines) == len(GAINS)
    assert [[text.get_text() for text in axes.texts] for axes in heat] == [["2", "-", "2", "-"]] * 2


@pytest.mark.slow
def test_a_small_study_measures_every_gate(tmp_path, monkeypatch):
    table = [{"units": 2}]
    monkeypatch.setattr(study, "speed_table", lambda: table)
    monkeypatch.setattr(study, "draw_speed", lambda axes, rows, over: None)
    small = ParallelTime(hidden_size=4, num_steps=256, models=2, num_updates=2)
    result = run_study(small, tmp_path)
    assert [gate["name"] for gate in result["gates"]] == [gate.name for gate in small.gates]
    passed = {gate["name"]: gate["passed"] for gate in result["gates"]}
    assert all(passed[name] for name in (study.EXACT, study.GRADIENT, study.PREFIX, study.MOST))
    assert result["reported"] == table
    zoo = open_zoo(tmp_path / "ParallelTime" / study.RANDOM)
    assert len(zoo.table) == 2 * len(GAINS)
    for row, text in enumerate(zoo.table["learning_config"].to_pylist()):
        # Entries are uniform up to the gain times sqrt(3 / hidden): of 16, the largest is above half of that.
        share = zoo.stack([row]).params["weight_hh.0"].abs().max().item() / (json.loads(text)["gain"] / 4**0.5)
        assert 0.5 < share <= 1 + 1e-6


@pytest.mark.slow
def test_the_study_passes_all_gates_but_the_correlation_in_ten_cpu_minutes(tmp_path):
    # The correlation is at its threshold, where rounding decides: see the docstring of the study.
    main(["study", "run", "ParallelTime", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "ParallelTime/result.json").read_text())
    assert {gate["name"] for gate in result["gates"] if not gate["passed"]} <= {study.RANK}
    (correlation,) = (gate["value"] for gate in result["gates"] if gate["name"] == study.RANK)
    assert correlation > 0.85
    assert result["cpu_seconds"] < 600
