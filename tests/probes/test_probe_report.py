"""What `probes run` leaves: one page that needs nothing else, rows as JSON, and clear refusals."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from probes import bootstrap, probe, report
from probes.answer import interval, is_difference, sentence
from probes.cli import main
from probes.evaluation import evaluate
from probes.feature_sets import Embedding, read_embeddings
from probes.page.render import Heading, render
from probes.problem import read_rows
from probes.targets import named_target
from tests.probes.page_parser import Page
from tests.probes.test_probe_targets import make_table
from tests.weightspace.zoos import write_zoo
from weightspace.store import open_zoo

BASELINES = ("statistics", "spectra", "statistics+spectra", "markov", "responses", "metadata")


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Few trees and resamples, for these tests are of what is said and not of numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "MOST_TREES", 5)
        patch.setattr(bootstrap, "NUM_KENDALL_RESAMPLES", 10)
        yield


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("zoo") / "zoo", models=20, rollouts=False)


def write_embeddings(path, folder, values=None, **changes):
    opened = open_zoo(folder)
    record = {"encoder": "E", "objective": "O", "learned_with": "labels", "name": path.stem, "zoo": opened.fingerprint}
    if values is None:
        values = torch.randn(opened.num_rows, 5, generator=torch.Generator().manual_seed(0))
    text = json.dumps(record | changes, sort_keys=True)
    path.write_bytes(safetensors.torch.save({"embedding": values}, {"weightspace": text}))
    return path


@pytest.fixture(scope="module")
def done(zoo, quick, tmp_path_factory):
    """A folder that `run` has filled, from an embedding with labels and one without."""
    out = tmp_path_factory.mktemp("run")
    with_labels = write_embeddings(out / "first.safetensors", zoo)
    without = write_embeddings(out / "second.safetensors", zoo, learned_with="no_labels", name=None)
    rows = report.run(zoo, [with_labels, without], out / "probes", targets=["score", "decay", "family"])
    return out / "probes", rows


def test_probes_json_holds_the_rows_and_where_they_come_from(done, zoo):
    out, rows = done
    document = json.loads((out / "probes.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["rows"] == rows
    assert document["zoo"] == open_zoo(zoo).fingerprint
    assert [target["name"] for target in document["targets"]] == ["score", "decay", "family"]
    assert document["excluded"]["in_distribution"]["score"]["step_0"] > 0
    assert "scikit-learn" in document["created_with"]
    wanted = {"embedding:first", "embedding:second", *BASELINES, "shuffled"}
    wanted |= {f"embedding:{name} + statistics+spectra" for name in ("first", "second")}
    assert {row["features"] for row in rows if " - " not in row["features"]} == wanted
    learned = {row["features"]: row["learned_with"] for row in rows}
    assert (learned["embedding:first"], learned["embedding:second"], learned["statistics"]) == (
        "labels",
        "no_labels",
        None,
    )
    assert sorted(path.name for path in out.iterdir()) == ["picture.png", "probes.json", "report.html"]


def test_the_report_needs_nothing_from_elsewhere(done):
    page = (done[0] / "report.html").read_text()
    assert not re.findall(r"@import|url\(|<link|https?:|//[a-z]+\.|fetch\(|XMLHttpRequest|import\(", page)
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


def test_ids_are_unique_and_every_link_leads_to_one(done):
    parsed = Page((done[0] / "report.html").read_text())
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert len(parsed.anchors) >= 4
    assert set(parsed.anchors) <= set(parsed.ids)
    sections = [a["id"] for tag, a in parsed.elements if tag == "section" and a.get("id")]
    assert set(parsed.anchors) == set(sections)


def test_canvases_and_controls_have_words(done):
    parsed = Page((done[0] / "report.html").read_text())
    for tag, attributes in parsed.elements:
        if tag in ("canvas", "svg") or attributes.get("role") == "img":
            assert attributes.get("aria-label"), (tag, attributes)
        if tag == "img":
            assert len(attributes.get("alt") or "") > 20


def test_the_data_hold_each_model_once_and_the_predictions_that_were_judged(done, zoo):
    parsed, rows = Page((done[0] / "report.html").read_text()), done[1]
    data, table = parsed.data, open_zoo(zoo).table
    kept = [row for row, status in enumerate(table.column("status").to_pylist()) if status != "diverged"]
    assert sorted(data["models"]) == sorted({table.column("model_id")[row].as_py() for row in kept})
    assert len(data["model"]) == len(kept)
    assert [shown["name"] for shown in data["maps"]] == ["embedding:first", "embedding:second"]
    for shown in data["maps"]:
        assert len(shown["x"]) == len(shown["y"]) == len(shown["neighbours"]) == len(kept)
        assert all(0 <= place <= 1000 for place in (*shown["x"], *shown["y"]))
    for question in data["questions"]:
        if question["metric"] == "kendall_tau":
            continue
        for panel in question["panels"]:
            (row,) = [
                row
                for row in rows
                if (row["features"], row["probe"].replace("_", " ")) == (panel["features"], panel["probe"])
                and all(row[key] == question[key] for key in ("target", "split", "metric"))
            ]
            true, predicted = np.array(question["true"]), np.array(panel["predicted"])
            centre = 0.0 if question["metric"] == "r2_within_cell" else true.mean()
            r2 = 1 - np.sum((true - predicted) ** 2) / np.sum((true - centre) ** 2)
            assert r2 == pytest.approx(row["value"], abs=2e-2 + 2e-2 * abs(row["value"]))


def test_numbers_on_the_page_are_those_of_the_rows(done):
    out, rows = done
    text = Page((out / "report.html").read_text()).text
    for row in rows:
        if row.get("strongest") and row["metric"] == "r2_within_cell":
            assert interval(row) in text
    for row in rows:
        if row["metric"] == "r2_within_cell" and not is_difference(row) and row["value"] is not None:
            numbers = (f"{round(row[key], 2) + 0.0:.2f}" for key in ("value", "low", "high"))
            assert "{} [{}, {}]".format(*numbers) in text
    assert sentence(rows) in text


def test_the_report_mentions_every_target_and_all_features(done):
    page = (done[0] / "report.html").read_text()
    text = Page(page).text
    for words in (
        "score",
        "decay",
        "family",
        "embedding:first",
        "embedding:second",
        "metadata",
        "shuffled",
        "of step 0",
    ):
        assert words in text
    assert "learned with labels" in text
    assert "learned without labels" in text
    assert not re.search(r"\bnan\b|-0\.00\b|\bNone\b", Page(page).text)


def test_names_are_escaped_in_the_report():
    table = make_table(models=40, label=np.arange(80.0), family=["<b>GRU</b>", "Elman"] * 40)
    values = np.random.default_rng(0).normal(size=(80, 2))
    one = Embedding(name="embedding:<script>", made_for={("in_distribution", None): values})
    targets = [named_target(table, "label")]
    evaluation = evaluate(table, [one], targets)
    page = render(evaluation, read_rows(table), [one], targets, Heading(title="a & b", zoo="0" * 64, notice="<b>"))
    parsed = Page(page)
    assert sum(tag == "script" for tag, _ in parsed.elements) == 3
    assert "<script>" in parsed.text
    assert [shown["name"] for shown in parsed.data["maps"]] == ["embedding:<script>"]
    assert "<b>GRU</b>" in parsed.data["columns"][0]["values"]
    assert "a &amp; b" in page
    assert page.index("&lt;b&gt;") < page.index('id="answer"')


def test_costs_of_encoders_are_shown_where_rows_have_them():
    table = make_table(models=40, label=np.arange(80.0))
    values = np.random.default_rng(0).normal(size=(80, 1))
    one = Embedding(name="embedding:a", made_for={("in_distribution", None): values})
    evaluation = evaluate(table, [one], [named_target(table, "label")])
    for row in evaluation.rows:
        row |= {"parameters": 12345, "models_per_cpu_second": 678.4, "peak_memory_mb": None}
    page = render(
        evaluation, read_rows(table), [one], [named_target(table, "label")], Heading(title="costs", zoo="0" * 64)
    )
    assert "12,345" in page
    assert "678" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zoo": "f" * 64}, "embeds the zoo ffffffffffff, but this zoo is"),
        ({"values": torch.zeros(7, 2)}, r"holds embeddings \(7, 2\), but the zoo has 120 rows"),
        ({"values": torch.zeros(120)}, r"holds embeddings \(120,\)"),
        ({"learned_with": "magic"}, "says learned_with 'magic'"),
        ({"name": "\x1b[31m"}, "which are not understood"),
    ],
)
def test_embeddings_that_do_not_belong_to_the_zoo_are_refused(changes, message, zoo, tmp_path):
    path = write_embeddings(tmp_path / "one.safetensors", zoo, **changes)
    with pytest.raises(ValueError, match=message):
        read_embeddings([path], open_zoo(zoo))


def test_files_that_are_no_embeddings_are_refused(zoo, tmp_path):
    (tmp_path / "text").write_text("not a tensor in sight")
    (tmp_path / "bare").write_bytes(safetensors.torch.save({"embedding": torch.zeros(120, 2)}))
    (tmp_path / "empty").write_bytes(safetensors.torch.save({"other": torch.zeros(1)}, {"weightspace": "{}"}))
    for name in ("text", "bare", "empty"):
        with pytest.raises(ValueError, match=f"{name} is not a file of `weightspace embed`"):
            read_embeddings([tmp_path / name], open_zoo(zoo))
    with pytest.raises(ValueError, match="There is no file"):
        read_embeddings([tmp_path / "absent"], open_zoo(zoo))


def test_names_of_embeddings_must_differ(zoo, tmp_path):
    paths = [write_embeddings(tmp_path / f"{i}.safetensors", zoo, name="same") for i in range(2)]
    with pytest.raises(ValueError, match="both named 'embedding:same' and made for in_distribution"):
        read_embeddings(paths, open_zoo(zoo))


def test_the_command_prints_a_table(zoo, tmp_path, capsys):
    path = write_embeddings(tmp_path / "one.safetensors", zoo)
    arguments = ["run", "--zoo", str(zoo), "--embeddings", str(path), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--targets", "trace"]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    assert printed.splitlines()[-1] == f"Wrote {out / 'probes.json'} and {out / 'report.html'}."
    assert len(printed.splitlines()) < 12
    assert "one (learned with labels)" in printed
    assert main([*arguments, "--targets", "trace", "--table"]) == 0
    printed = capsys.readouterr().out
    assert "trace: within-cell R2" in printed
    assert "embedding:one - " in printed


def test_the_command_reads_a_config_and_prints_one_json_document(zoo, tmp_path, capsys):
    config = tmp_path / "probe.yaml"
    config.write_text(f"zoo: {zoo}\nout: {tmp_path / 'out'}\ntargets: [task]\n")
    assert main(["run", "--config", str(config), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out" / "probes.json").read_text())
    assert [target["name"] for target in document["targets"]] == ["task"]


def test_only_the_baselines_that_are_named_are_read_and_the_report_says_so(zoo, tmp_path, monkeypatch):
    path, out = write_embeddings(tmp_path / "one.safetensors", zoo), tmp_path / "out"
    monkeypatch.setattr("probes.feature_sets.responses_of", lambda zoo: pytest.fail("responses were read"))
    arguments = ["run", "--zoo", str(zoo), "--embeddings", str(path), "--out", str(out), "--targets", "score"]
    assert main([*arguments, "--baselines", "metadata", "statistics+spectra"]) == 0
    document = json.loads((out / "probes.json").read_text())
    assert document["baselines"] == ["statistics+spectra", "metadata"]
    alone = {row["features"] for row in document["rows"] if " - " not in row["features"]}
    learned = {"embedding:one", "embedding:one + statistics+spectra", "shuffled"}
    assert alone == learned | {"statistics+spectra", "metadata"}
    page = (out / "report.html").read_text()
    assert "Only these baselines were probed, by choice: statistics+spectra, metadata" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--zoo", "absent"], "absent is not a folder"),
        (["--zoo", "ZOO", "--baselines", "spectrum"], "spectra"),
        (["--zoo", "ZOO", "--embeddings", "absent"], "There is no file absent"),
        (["--zoo", "ZOO", "--targets", "wisdom"], "No column of the zoo is called 'wisdom'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, zoo, tmp_path, capsys):
    arguments = [str(zoo) if word == "ZOO" else word for word in arguments]
    assert main(["run", *arguments, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert message in line
    assert captured.out == ""
    assert not list(tmp_path.glob("out/*"))


def test_unknown_options_are_status_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--zoo", "zoo", "--out", "out", "--embedings", "x"])
    assert stopped.value.code == 2
    assert "embedings" in capsys.readouterr().err


def test_an_interrupt_is_status_130(zoo, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "evaluate", interrupted)
    assert main(["run", "--zoo", str(zoo), "--out", str(tmp_path / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("command", [[], ["run"], ["benchmark"]])
def test_help_has_an_example_and_loads_nothing_heavy(command):
    code = "import sys; from probes.cli import main\ntry:\n main(sys.argv[1:])\nexcept SystemExit as stop:\n"
    code += " heavy = {'torch', 'sklearn', 'scipy', 'numpy', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
    code += " sys.exit(stop.code or (str(heavy) if heavy else 0))"
    asked = [sys.executable, "-c", code, *command, "--help"]
    answer = subprocess.run(asked, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "Example: probes" in answer.stdout
