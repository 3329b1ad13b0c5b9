"""The table of gates: one row for each that a study declares, values from results, figures beside it."""

import json
import re
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread, imsave

from weightspace.components import plugins
from zoo_builder import studies
from zoo_builder.cli import main
from zoo_builder.studies.table import HEADER, LARGEST_FIGURE, small_figure

TRIAL = "tests.zoo_builder.trial_study"
DOCUMENT = Path(__file__).parents[2] / ".docs/pages/studies.md"
DECLARED = [
    (name, gate.name, f"{gate.comparison} {gate.threshold:g} {gate.unit}")
    for name, kind in sorted(studies.available().items())
    if kind.__module__.startswith("zoo_builder.studies.")
    for gate in kind.gates
]


@pytest.fixture(autouse=True)
def only_ours(monkeypatch):
    """Allowances of a command last as long as its process: taken back here, because other tests share it."""
    monkeypatch.setattr(plugins, "_allowed", {})


def rows_in(text):
    """Cells of the first Markdown table of a text, without its header."""
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [tuple(re.split(r" (?<!\\)\| ", line.strip("| "))) for line in lines[2:]]


def test_the_table_in_the_documents_has_every_declared_gate_and_no_other():
    text = DOCUMENT.read_text()
    rows = rows_in(text)
    assert [row[:3] for row in rows] == DECLARED
    figures = re.findall(r"!\[(\w+)\]\((.*?)\)", text)
    assert [name for name, _ in figures] == sorted({study for study, *_ in rows})
    for _, path in figures:
        assert (DOCUMENT.parent / path).stat().st_size <= LARGEST_FIGURE


def test_verdicts_in_the_documents_follow_from_their_numbers():
    gates = {(name, gate.name): gate for name, kind in studies.available().items() for gate in kind.gates}
    for study, gate, _, value, verdict in rows_in(DOCUMENT.read_text()):
        assert verdict == "passed", gate
        assert gates[study, gate].passes(float(value)), gate


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("studies")
    assert main(["study", "run", "Decaying", "Growing", "--out", str(out), "--allow_import", TRIAL]) == 1
    return out


def call(*arguments):
    return main(["study", "table", *map(str, arguments), "--allow_import", TRIAL])


def test_a_table_has_what_was_measured_and_says_what_was_not_run(run, capsys):
    assert call(run / "Growing", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["study"], row["verdict"]) for row in rows if row["study"] not in ("Growing", "Decaying")} == {
        (name, "not run") for name, *_ in DECLARED
    }
    result = json.loads((run / "Growing/result.json").read_text())
    first, absent = (row for row in rows if row["study"] == "Growing")
    assert list(first) == sorted(HEADER)
    assert first["measured"] == result["gates"][0]["value"]
    assert first["threshold"] == "> 10 eigenvalue"
    assert [first["verdict"], absent["measured"], absent["verdict"]] == ["failed", None, "failed"]
    (other,) = [row for row in rows if row["study"] == "Decaying"]
    assert [other["measured"], other["verdict"]] == [None, "not run"]


def test_the_page_has_claims_papers_tables_and_figures(run, tmp_path, capsys):
    page = tmp_path / "deep/page.md"
    assert call(run, "--out", page) == 0
    assert capsys.readouterr().out == f"{page}: 2 studies\n"
    text = page.read_text()
    assert "Planted memories fade.\n\nNobody: Memories fade, Journal of Trials 2020." in text
    assert "| cell | size |\n| --- | --- |\n| a | 0.1235 |\n" in text
    assert re.findall(r"!\[\w+\]\((.*?)\)", text) == ["page/Decaying.png", "page/Growing.png"]
    assert (tmp_path / "deep/page/Decaying.png").read_bytes() == (run / "Decaying/figure.png").read_bytes()
    assert call(run) == 0
    assert "![" not in capsys.readouterr().out


def test_large_figures_are_made_smaller(tmp_path):
    path = tmp_path / "figure.png"
    noise = torch.rand(300, 400, 3, generator=torch.Generator().manual_seed(0))
    imsave(path, noise.numpy())
    assert path.stat().st_size > 2 * LARGEST_FIGURE
    made = small_figure(path)
    assert len(made) <= LARGEST_FIGURE
    (tmp_path / "small.png").write_bytes(made)
    height, width = imread(tmp_path / "small.png").shape[:2]
    assert width / height == pytest.approx(4 / 3, rel=0.02)
    assert width > 100


def changed(run, tmp_path, change):
    result = json.loads((run / "Decaying/result.json").read_text())
    change(result)
    (tmp_path / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_results_that_do_not_fit_are_refused_with_the_way_out(run, tmp_path, capsys):
    cases = [
        ([tmp_path / "nowhere"], "holds no result.json; give folders that `zoo-builder study run` left."),
        ([run, run / "Growing"], "Growing has results in"),
        ([changed(run, tmp_path, lambda r: r["gates"][0].update(threshold=9.0))], "run the study again."),
    ]
    for folders, message in cases:
        assert call(*folders) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert call(changed(run, tmp_path, lambda r: r.update(study="Nothing"))) == 2
    assert "is of the study 'Nothing', which is not among ['ActorCriticMemory'" in capsys.readouterr().err
