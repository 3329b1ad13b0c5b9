"""The study of online learning: its zoo, its accuracies and its gates."""

import json

import pytest
import torch

from weightspace.store import open_zoo
from zoo_builder.cli import main
from zoo_builder.studies import online_learning as study
from zoo_builder.studies.base import Measured
from zoo_builder.studies.online_learning import HORIZONS, LEARNERS, OnlineLearning, accuracies, rows_of
from zoo_builder.studies.run import run_study


def test_the_figure_has_a_line_for_each_network_and_their_median():
    curves = {"step": [0, 5, 10]} | {
        name: {"learning": torch.rand(4, 3), "horizons": torch.rand(4, len(HORIZONS))} for name in LEARNERS
    }
    learning, horizons = OnlineLearning().draw(Measured({}, curves)).axes
    assert len(learning.lines) == 3 * 5 + 1
    assert len(horizons.lines) == 3 * 5 + 2
    assert list(learning.lines[4].get_ydata()) == curves["RTRL"]["learning"].quantile(0.5, dim=0).tolist()


@pytest.mark.slow
def test_a_small_study_measures_what_its_networks_answer(tmp_path):
    small = OnlineLearning(hidden_size=3, num_steps=6, window=2, num_updates=3, models=2)
    result = run_study(small, tmp_path)
    assert [gate["name"] for gate in result["gates"]] == [gate.name for gate in small.gates]
    zoo = open_zoo(tmp_path / "OnlineLearning" / study.ZOO)
    rows = [rows_of(zoo, name, 3) for name in LEARNERS]
    assert sorted(len(part) for part in rows) == [2, 2, 2]
    assert ((accuracies(zoo, "RTRL", 3, 6) >= 0) & (accuracies(zoo, "RTRL", 3, 6) <= 1)).all()


@pytest.mark.slow
def test_the_study_passes_its_gates_in_ten_cpu_minutes(tmp_path):
    assert main(["study", "run", "OnlineLearning", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "OnlineLearning/result.json").read_text())["cpu_seconds"] < 600
