"""The study of low-rank and sparse connectivity: its numbers against numpy, its table, its figure."""

import json

import numpy as np
import pytest
import torch

from weightspace.store import open_zoo
from zoo_builder.build import build
from zoo_builder.cli import main
from zoo_builder.studies import low_rank_connectivity
from zoo_builder.studies.low_rank_connectivity import DENSE, LAW, NORM, RANK, SPARSITY, SURVIVAL, LowRankConnectivity
from zoo_builder.workers import in_process


@pytest.fixture(scope="module")
def study():
    return LowRankConnectivity(
        hidden_size=6, num_updates=4, num_steps=5, horizon=6, models=2, initial_size=12, initial_models=3
    )


@pytest.fixture(scope="module")
def zoos(study, tmp_path_factory):
    out, patch = tmp_path_factory.mktemp("low_rank"), pytest.MonkeyPatch()
    for name, few in {
        "INITIAL_RANKS": (4, 12), "INITIAL_SPARSITIES": (0.0, 0.5), "RANKS": (2,), "SPARSITIES": (0.0, 0.5),
        "CELLS": ("Elman", "CfC"),
    }.items():  # fmt: skip
        patch.setattr(low_rank_connectivity, name, few)
    for name, recipe in study.recipes.items():
        build(recipe, out / name, engine=in_process.run_shards, method="torch")
    yield {name: open_zoo(out / name) for name in study.recipes}
    patch.undo()


def test_the_default_size_has_the_gates_of_twenty_networks_and_every_kind():
    # Before the fixture makes the study small.
    recipes = LowRankConnectivity().recipes
    assert recipes["initial"]["models_per_cohort"] == 20
    assert len(recipes["initial"]["families"]) == 2 * 4 * 4
    assert len(recipes["imitation"]["families"]) == 3 * 3 * 3 + 1


def matrices(zoo, config):
    """Stored params of the last networks of one kind as numpy arrays, (models, ...)."""
    configs = [json.loads(text) for text in zoo.table["family_config"].to_pylist()]
    rows = [row for row, found in enumerate(configs) if config.items() <= found.items()]
    return {name: value.double().numpy() for name, value in zoo.stack(rows).params.items()}, rows


def test_gates_compare_spectra_norms_and_survival_of_the_right_networks(study, zoos):
    measured, radius, error = study.measure(zoos), {}, []
    for initial in ("glorot", "orthogonal"):
        for rank in (4, 12):
            for sparsity in (0.0, 0.5):
                config = {"initial": initial, "rank": rank, "sparsity": sparsity}
                params, _ = matrices(zoos["initial"], config)
                whole = params["weight_hh.0.to"] @ params["weight_hh.0.from"]
                found = np.abs(np.linalg.eigvals(whole * params["weight_hh.0.mask"])).max(1).mean()
                singular = np.linalg.svd(whole, compute_uv=False)
                law = np.sqrt((1 - sparsity) * (singular**2).sum(1) / 12).mean()
                radius[initial, rank, sparsity] = found
                error.append(abs(found / law - 1))
    assert measured.values[LAW] == pytest.approx(max(error), rel=1e-5)
    grown = [radius[i, 12, s] / radius[i, 4, s] for i in ("glorot", "orthogonal") for s in (0.0, 0.5)]
    fallen = [radius[i, r, 0.0] / radius[i, r, 0.5] for i in ("glorot", "orthogonal") for r in (4, 12)]
    assert measured.values[RANK] == pytest.approx(min(grown), rel=1e-5)
    assert measured.values[SPARSITY] == pytest.approx(min(fallen), rel=1e-5)

    norm, survival = {}, {}
    column = zoos["imitation"].table["survival"].to_pylist()
    for cell, name in (("Elman", "weight_hh.0"), ("CfC", "weight_hh")):
        for sparsity in (0.0, 0.5):
            params, rows = matrices(zoos["imitation"], {"cell": cell, "sparsity": sparsity})
            used = params[f"{name}.to"] @ params[f"{name}.from"] * params[f"{name}.mask"]
            norm[cell, sparsity] = np.linalg.norm(used, 2, axis=(-2, -1)).mean()
            survival[cell, sparsity] = np.mean([column[row] for row in rows])
    falls = [norm[cell, 0.0] - norm[cell, 0.5] for cell in ("Elman", "CfC")]
    assert measured.values[NORM] == pytest.approx(min(falls), rel=1e-5)
    dense = [row for row, family in enumerate(zoos["imitation"].table["family"].to_pylist()) if family == "Elman"]
    worst = min(survival["CfC", 0.0], survival["CfC", 0.5])
    assert measured.values[SURVIVAL] == pytest.approx(worst - np.mean([column[row] for row in dense]), abs=1e-6)


def test_the_table_has_a_row_for_each_kind_that_learned_and_the_figure_a_panel_for_each_cell(study, zoos):
    measured = study.measure(zoos)
    kinds = {(row["cell"], row["rank"], row["sparsity"]) for row in measured.reported}
    assert kinds == {(DENSE, 6, 0.0), *((cell, 2, s) for cell in ("Elman", "CfC") for s in (0.0, 0.5))}
    for row in measured.reported:
        assert set(row) == {"cell", "rank", "sparsity", "norm of W", "survival", "survival_noisy", "survival_pushed"}
        assert 0 <= row["survival_pushed"] <= 1
    figure = study.draw(measured)
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes] == ["Before training", "Norm of W after training", "Elman", "CfC"]
    texts = [text.get_text() for text in figure.axes[3].texts]
    shares = measured.curves["survival"]["CfC", 2, 0.5].values()
    assert texts[1] == " / ".join(f"{100 * share.mean().item():.0f}" for share in shares)


@pytest.mark.slow
def test_the_study_passes_its_gates_in_ten_cpu_minutes(tmp_path):
    assert main(["study", "run", "LowRankConnectivity", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "LowRankConnectivity/result.json").read_text())
    assert all(gate["passed"] for gate in result["gates"])
    assert result["cpu_seconds"] < 600
    assert torch.tensor([row["survival"] for row in result["reported"]]).isfinite().all()
