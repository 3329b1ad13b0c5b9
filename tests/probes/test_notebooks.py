"""Notebooks: percent scripts that run, each with the .ipynb made of it beside it."""

import re
import runpy
from pathlib import Path

import jupytext
import numpy as np
import pytest

import weightspace as ws

NOTEBOOKS = sorted((Path(__file__).parents[2] / "probes" / "notebooks").glob("*.py"))


@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_shipped_notebook_is_the_percent_script(script):
    shipped, source = jupytext.read(script.with_suffix(".ipynb")), jupytext.read(script)
    assert [(c.cell_type, c.source) for c in shipped.cells] == [(c.cell_type, c.source) for c in source.cells]


@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_shipped_notebook_has_outputs_and_no_error(script):
    cells = [cell for cell in jupytext.read(script.with_suffix(".ipynb")).cells if cell.cell_type == "code"]
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert all(cell.execution_count for cell in cells)
    assert kinds >= {"stream", "execute_result"}
    assert "error" not in kinds
    assert script.with_suffix(".ipynb").stat().st_size < 500_000


@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_the_face_and_no_deep_path(script):
    packages = {"weightspace", "zoo_builder", "probes"}
    imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", script.read_text(), re.MULTILINE)
    assert {name for name in imported if name.split(".")[0] in packages} == {"weightspace"}
    assert "import weightspace as ws\n" in script.read_text()


def test_every_shipped_notebook_has_a_script():
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in NOTEBOOKS[0].parent.glob("*.ipynb"))


def test_the_notebook_that_builds_leaves_a_zoo_whose_models_have_learned(tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.setenv("WEIGHTSPACE_NOTEBOOKS", str(tmp_path))
    (script,) = (path for path in NOTEBOOKS if path.stem == "build_a_zoo")
    names = runpy.run_path(str(script))
    assert names["largest_change"] < 1e-12
    assert names["zoo"].manifest["num_models"] == 96
    assert ws.open_zoo(tmp_path / "zoo").fingerprint == names["zoo"].fingerprint
    scores = names["table"].groupby(["network", "step"])["score"].mean().unstack()
    assert len(scores) == 3
    assert (scores[100] > scores[0] + 0.15).all()
    hard = names["last"].groupby("delay")["score"].mean()
    assert hard[6] < hard[2] - 0.1


@pytest.mark.slow
def test_the_notebook_on_dynamics_orders_pairs_by_both_distances(tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.setenv("WEIGHTSPACE_NOTEBOOKS", str(tmp_path))
    monkeypatch.setenv("WEIGHTSPACE_MODELS", "5")
    (script,) = (path for path in NOTEBOOKS if path.stem == "compare_with_dynamics")
    names = runpy.run_path(str(script))
    angles, tasks = names["by_definition"], names["tasks"]
    assert angles.shape == (15, 15)
    # Dynamics of one task are nearer to each other than to those of others.
    same = tasks[:, None] == tasks
    np.fill_diagonal(same, False)
    assert angles[same].mean() < 0.8 * angles[tasks[:, None] != tasks].mean()
    assert names["copy_of_embeddings"] < 1e-4
    assert names["copy_of_dynamics"] < 0.5 * angles[same].mean()
    # A change of coordinates is none of dynamics.
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0]
    matrix = np.random.default_rng(1).normal(size=(10, 10)) / 3
    pair = np.stack([matrix, rotation @ matrix @ rotation.T])
    assert names["smallest_angles"](pair, starts=8, updates=600)[0, 1] < 0.1
    assert names["agreement"] is None or names["agreement"] > 0.8
    for interval in names["results"].values():
        assert interval["low"] <= interval["rank correlation"] <= interval["high"]


@pytest.mark.slow
def test_the_notebook_on_a_network_of_ones_own_finds_its_memories(tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.setenv("WEIGHTSPACE_NOTEBOOKS", str(tmp_path))
    monkeypatch.setenv("WEIGHTSPACE_UPDATES", "250")
    (script,) = (path for path in NOTEBOOKS if path.stem == "look_into_your_rnn")
    names = runpy.run_path(str(script))
    assert names["largest_difference"] < 1e-5
    assert names["largest_step"] < 1e-5
    # Four memories of two bits, each where the read-out says so.
    signs = {tuple(row) for row in names["remembered"].round().tolist()}
    assert signs == {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    assert len(names["neighbours"]) == 8
    assert names["found"].stable.sum() == 4
    # Between memories there are points that are not stable.
    assert len(names["found"].points) > 4
