"""The whole way, once, on the tiny zoo: the command, its files, a second run, notebooks, the Hugging Face loader."""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from probes.answer import above_chance
from tests.probes.page_parser import Page
from tests.test_pages import AFTER_QUICKSTART
from weightspace.quickstart import SMOKE_TEST, quickstart

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "probes" / "notebooks"


def run(*command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    done = run("weightspace", "quickstart", "--size", "tiny", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert str(out / "probes" / "report.html") in done.stdout
    assert len(done.stdout.splitlines()) < 30
    return out


def test_the_first_line_of_a_tiny_report_says_that_it_is_a_smoke_test(folder):
    page = Page((folder / "probes" / "report.html").read_text())
    assert page.text.split("Dark theme")[0].strip().endswith(SMOKE_TEST)
    assert {"map", "in_distribution", "judged", "attribution", "notes"} <= set(page.anchors) <= set(page.ids)


def test_a_tiny_report_has_one_green_row(folder):
    """The label that was trained on is read within cells, and more of it than shuffled labels would leave."""
    rows = json.loads((folder / "probes" / "probes.json").read_text())["rows"]
    told = {(row["features"], row["target"]) for row in above_chance(rows)}
    assert ("embedding:supervised", "memory_decay_rate") in told
    assert '<span class="tag better">above chance</span>' in (folder / "probes" / "report.html").read_text()


def test_every_promised_file_is_there(folder):
    promised = ["zoo/zoo.json", "zoo/models.parquet", "zoo/README.md", "embeddings.safetensors"]
    promised += ["run/supervised/checkpoints/best.ckpt", "run/supervised/config.yaml", "run/supervised/metrics.csv"]
    promised += ["embeddings_no_labels.safetensors", "probes/probes.json", "probes/report.html", "probes/picture.png"]
    assert [name for name in promised if not (folder / name).is_file()] == []


def test_the_probe_table_has_headlines_learned_both_ways_beside_all_baselines(folder):
    rows = json.loads((folder / "probes" / "probes.json").read_text())["rows"]
    assert {row["split"] for row in rows} == {"in_distribution"}
    rows = [row for row in rows if row["split"] == "in_distribution"]
    for target in ("state_effective_rank", "memory_decay_rate", "score"):
        here = [row for row in rows if row["target"] == target and row["metric"] == "r2_within_cell"]
        assert {row["learned_with"] for row in here if row["features"].startswith("embedding")} >= {
            "labels",
            "no_labels",
        }
        assert {row["features"] for row in here} >= {"metadata", "statistics", "spectra", "shuffled"}
        assert {row["probe"] for row in here if row["features"] == "statistics"} == {"ridge", "gradient_boosting"}
        assert any(row["features"] == "embedding:supervised - statistics" for row in here)
        assert all(row["low"] is None or row["low"] <= row["high"] for row in here)


def times(folder):
    """When each file was last written, but those of probes, which are run again."""
    kept = [path for path in folder.rglob("*") if path.is_file() and "probes" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in kept}


def test_a_second_run_resumes_and_changes_nothing(folder, monkeypatch):
    before, probed = times(folder), []
    monkeypatch.setattr("probes.report.run", lambda *arguments, **options: probed.append(arguments) or [])
    quickstart(folder, "tiny")
    assert times(folder) == before
    files = [folder / "embeddings.safetensors", folder / "embeddings_no_labels.safetensors"]
    assert probed == [(folder / "zoo", files, folder / "probes")]


@pytest.mark.slow
def test_a_second_command_resumes_changes_nothing_and_probes_the_same(folder):
    before, rows = times(folder), json.loads((folder / "probes" / "probes.json").read_text())["rows"]
    done = run("weightspace", "quickstart", "--size", "tiny", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    assert times(folder) == before
    assert json.loads((folder / "probes" / "probes.json").read_text())["rows"] == rows


def test_the_zoo_verifies(folder):
    assert run("zoo_builder", "verify", str(folder / "zoo")).returncode == 0


def test_the_zoo_opens_with_hugging_face_datasets(folder, tmp_path):
    import datasets

    table = datasets.load_dataset(str(folder / "zoo"), cache_dir=str(tmp_path))["train"]
    assert table.num_rows == 480
    assert set(table["split"]) == {"train", "val", "test"}


def test_ten_lines_of_the_readme_embed_predict_measure_and_find_neighbours(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "quickstart").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    (block,) = AFTER_QUICKSTART
    assert len(block.splitlines()) <= 10
    names: dict = {"__name__": "page"}
    exec(compile(block, "README", "exec"), names)
    embeddings = safetensors.torch.load_file(folder / "embeddings.safetensors")["embedding"]
    wanted = (embeddings - names["embedding"]).norm(dim=1).sort().values[:5]
    found = (embeddings[names["nearest"]] - names["embedding"]).norm(dim=1)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert list(names["predicted"].columns) == ["memory_decay_rate"]
    assert {"state_effective_rank", "memory_decay_rate"} <= set(names["measured"].columns)
    assert "state_effective_rank" in capsys.readouterr().out


@pytest.fixture
def run_notebook(folder, tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.setenv("WEIGHTSPACE_QUICKSTART", str(folder))
    monkeypatch.setenv("WEIGHTSPACE_EPOCHS", "1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda name: runpy.run_path(str(NOTEBOOKS / f"{name}.py"))


def test_the_notebook_that_probes_runs_on_the_tiny_zoo(run_notebook):
    names = run_notebook("probe_a_zoo")
    assert set(names["headline"]["target"]) == {"state_effective_rank", "memory_decay_rate", "score"}


def test_the_notebook_on_labels_measures_one_again(run_notebook):
    names = run_notebook("look_at_labels")
    assert names["disagreement"] < 1e-12
    assert set(names["between"].index) == {"state_effective_rank", "memory_decay_rate", "score"}
    assert names["between"].between(0, 1).all()


def test_the_notebook_that_trains_shows_the_symmetry_and_leaves_embeddings(folder, run_notebook, tmp_path):
    names = run_notebook("train_an_encoder")
    assert names["change"]["all hidden units"] < 1e-5
    assert names["change"]["rows of weight_hh alone"] > 1e-3
    assert len(names["predicted"]) == len(names["test"]) > 0
    assert names["run_folder"].is_relative_to(tmp_path)
    assert len(names["embeddings"]) == len(names["zoo"])
    assert not (folder / "metrics.csv").exists()


FIT = """
import sys
import time
from pathlib import Path
from weightspace import quickstart
from weightspace.recipes import recipe

zoo, runs = map(Path, sys.argv[1:])
quickstart._fit({name: recipe(f"encoder/{name}.yaml") for name in quickstart.EMBEDDINGS}, runs, zoo)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_training_outlives_a_quickstart_that_is_stopped(folder, tmp_path, number):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FIT, str(folder / "zoo"), str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    children: list[int] = []
    patience = time.monotonic() + 30
    while len(children) < 2 and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.02)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 2
    # Long enough for Python to start, and not for a training to end.
    time.sleep(1.0)
    assert all(map(alive, children))
    os.kill(process.pid, number)
    process.wait()
    patience = time.monotonic() + 5
    while any(map(alive, children)) and time.monotonic() < patience:
        time.sleep(0.02)
    left = [pid for pid in children if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
