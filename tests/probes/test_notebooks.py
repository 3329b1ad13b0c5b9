"""Notebooks: percent scripts that run, each with the .ipynb made of it beside it."""

import runpy
from pathlib import Path

import jupytext
import pytest

from weightspace.store import open_zoo

NOTEBOOKS = sorted((Path(__file__).parents[2] / "probes" / "notebooks").glob("*.py"))


@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_shipped_notebook_is_the_percent_script(script):
    shipped, source = jupytext.read(script.with_suffix(".ipynb")), jupytext.read(script)
    assert [(c.cell_type, c.source) for c in shipped.cells] == [(c.cell_type, c.source) for c in source.cells]


def test_every_shipped_notebook_has_a_script():
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in NOTEBOOKS[0].parent.glob("*.ipynb"))


def test_the_notebook_that_builds_leaves_a_zoo_whose_models_have_learned(tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.setenv("WEIGHTSPACE_NOTEBOOKS", str(tmp_path))
    (script,) = (path for path in NOTEBOOKS if path.stem == "build_a_zoo")
    names = runpy.run_path(str(script))
    assert names["largest_change"] < 1e-12
    assert names["built"].models == 96
    assert open_zoo(tmp_path / "zoo").fingerprint == names["built"].fingerprint
    scores = names["table"].groupby(["network", "step"])["score"].mean().unstack()
    assert len(scores) == 3
    assert (scores[100] > scores[0] + 0.15).all()
    hard = names["last"].groupby("delay")["score"].mean()
    assert hard[6] < hard[2] - 0.1
