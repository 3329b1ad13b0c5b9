"""The study of second-order networks on characters: its budgets, its bits, its figure."""

import json

import pytest
import torch

from weightspace import families
from weightspace.rollout import rollout
from weightspace.store import open_zoo
from zoo_builder.cli import main
from zoo_builder.studies.base import Measured
from zoo_builder.studies.run import run_study
from zoo_builder.studies.second_order_language import BUDGET, RANKS, SecondOrderLanguage, bits_of
from zoo_builder.tasks.char_language import CharLanguage
from zoo_builder.tasks.text import ALPHABET

SMALL = SecondOrderLanguage(hidden_size=4, num_updates=3, batch_size=2, num_steps=6, models=2)


def test_the_small_networks_have_about_as_many_params():
    size = len(ALPHABET)
    counts = {
        name: families.load(name, {"input_size": size, "output_size": size, **fields}).spec.num_parameters
        for name, fields in BUDGET.items()
    }
    assert max(counts.values()) < 1.02 * min(counts.values())
    # The paper's formulas, with the biases that are here one and the same.
    n, d = 9, size
    assert counts["SecondOrder"] == (n + 1) * (d + 1) * n + n * d + d
    n = 37
    assert counts["Elman"] == 2 * n * d + n**2 + n + d
    n = 36
    assert counts["MIRNN"] == 2 * n * d + n**2 + n + d + 3 * n
    n, r = 31, 9
    assert counts["CPRNN"] == 2 * n * r + d * r + 2 * n * d + n**2 + n + d


def test_the_figure_has_a_line_for_the_ranks_and_lines_across_for_the_rest():
    bits = {"Elman": 3.2, "MIRNN": 3.1, "CPRNN 4": 3.1, "CPRNN 32": 3.0, "CPRNN 256": 2.8, "SecondOrder": 2.7}
    units = {name: torch.tensor([value, value + 0.02]) for name, value in bits.items()}
    budget = {f"{name} 9" if name == "CPRNN" else name: torch.tensor([3.0, 3.1]) for name in BUDGET}
    share = {name: values / 4 for name, values in units.items() if name != "Elman"}
    curves = {"units": units, "budget": budget, "baselines": {"unigram": 4.5}, "share": share}
    ranks, bars, shares = SMALL.draw(Measured({}, curves)).axes
    (line,) = (line for line in ranks.lines if line.get_label() == "CPRNN")
    assert list(line.get_xdata()) == [4, 32, 256]
    assert list(line.get_ydata()) == pytest.approx([3.11, 3.01, 2.81], rel=1e-6)
    assert {text.get_text() for text in ranks.get_legend().get_texts()} == {"CPRNN", "Elman", "MIRNN", "SecondOrder"}
    assert len(bars.patches) == 4
    assert {text.get_text() for text in shares.get_legend().get_texts()} == {"CPRNN", "MIRNN", "SecondOrder"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("language")
    return out, run_study(SMALL, out)


@pytest.mark.slow
def test_a_small_study_measures_every_gate_and_draws_three_panels(done):
    out, result = done
    assert [gate["name"] for gate in result["gates"]] == [gate.name for gate in SMALL.gates]
    assert all(gate["value"] is not None for gate in result["gates"])
    measured = SMALL.measure({name: open_zoo(out / "SecondOrderLanguage" / name) for name in SMALL.recipes})
    assert set(measured.curves["units"]) == {"Elman", "MIRNN", *(f"CPRNN {rank}" for rank in RANKS), "SecondOrder"}
    assert set(measured.curves["share"]) == set(measured.curves["units"]) - {"Elman"}
    assert len(SMALL.draw(measured).axes) == 3


@pytest.mark.slow
def test_bits_are_those_of_the_text_read_in_one_go(done):
    zoo = open_zoo(done[0] / "SecondOrderLanguage" / "units")
    task = CharLanguage(num_steps=6)
    part = task.text.test
    found = bits_of(zoo)
    rows = [
        row
        for row, (family, step) in enumerate(
            zip(zoo.table["family"].to_pylist(), zoo.table["step"].to_pylist(), strict=True)
        )
        if family == "SecondOrder" and step == 3
    ]
    stack = zoo.stack(rows)
    count = (len(part) - 1) // 6
    x = torch.nn.functional.one_hot(part[: 6 * count].view(count, 6).T, len(ALPHABET)).double()
    params = {name: value.double() for name, value in stack.params.items()}
    odds = rollout(stack.family, params, x[None].expand(2, -1, -1, -1), method="sequential").outputs
    target = part[1 : 6 * count + 1].view(count, 6).T[None, ..., None].expand(2, -1, -1, 1)
    log = odds.log_softmax(-1).gather(-1, target)
    expected = -log.mean((1, 2, 3)) / torch.tensor(2.0).log()
    assert found["SecondOrder"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.slow
def test_the_study_passes_its_gates_in_ten_cpu_minutes(tmp_path):
    assert main(["study", "run", "SecondOrderLanguage", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "SecondOrderLanguage/result.json").read_text())["cpu_seconds"] < 600
