"""A report on a few networks trained elsewhere: nothing to probe, but a place on the map, labels and eigenvalues."""

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from probes.answer import UNPROBED
from probes.cli import main
from probes.page.portraits import MOST_SHOWN, portraits
from tests.probes.page_parser import Page
from tests.weightspace.zoos import write_zoo
from weightspace.encoders.message_passing import MessagePassing
from weightspace.store import open_zoo
from weightspace.training.embed import embed
from zoo_builder import relabel
from zoo_builder.bring import bring
from zoo_builder.workers import in_process


@pytest.fixture(scope="module")
def layers():
    torch.manual_seed(0)
    return {"cortex": nn.GRU(3, 5), "deep": nn.LSTM(3, 6, 2), "hippocampus": nn.GRU(3, 4)}


@pytest.fixture(scope="module")
def mine(layers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    for name, layer in layers.items():
        safetensors.torch.save_file(layer.state_dict(), folder / f"{name}.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        # The same bytes as of a worker, whose start takes seconds.
        patch.setattr(relabel, "run_shards", in_process.run_shards)
        bring(folder, folder / "mine", labels=["Rank", "Performance"], workers=1)
    embed(None, folder / "mine", folder / "mine.safetensors")
    return folder / "mine"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    write_zoo(folder / "others", models=5, rollouts=False)
    embed(None, folder / "others", folder / "others.safetensors")
    return folder / "others"


@pytest.fixture(scope="module")
def page(mine, reference, tmp_path_factory):
    out = tmp_path_factory.mktemp("probes")
    command = ["run", "--zoo", str(mine), "--embeddings", f"{mine}.safetensors", "--out", str(out)]
    assert main([*command, "--reference", str(reference), f"{reference}.safetensors"]) == 0
    return Page((out / "report.html").read_text()), out


def test_the_page_says_that_nothing_is_probed_and_why_and_has_no_empty_part(page):
    parsed, out = page
    document = json.loads((out / "probes.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["rows"] == []
    reasons = document["excluded"]["in_distribution"]
    assert {reason["skipped"].partition(";")[0] for reason in reasons.values()} >= {
        "1 test model(s) with a usable label"
    }
    assert UNPROBED in parsed.text
    assert "1 test model(s) with a usable label" in parsed.text
    assert parsed.anchors == ["map", "portraits", "notes"]
    assert set(parsed.anchors) <= set(parsed.ids)
    assert "shuffled" not in parsed.text
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", parsed.text)
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_labels_of_every_model_stand_in_the_table_and_null_ones_do_not(page, mine):
    table, text = open_zoo(mine).table, page[0].text
    for name in ("state_effective_rank", "state_participation_ratio"):
        for value in table.column(name).to_pylist():
            assert f"{value:.4g}" in text
    for name in table.column("model_id").to_pylist():
        assert name in text
    # A label that applies to no model: they have no task.
    assert "score" in table.column_names
    assert "score" not in text


def test_eigenvalues_are_those_of_the_matrices_of_the_layer(layers, mine):
    opened = open_zoo(mine)
    row = opened.table["model_id"].to_pylist().index("cortex")
    pictures = portraits(opened)["spectra"][row]
    weights = layers["cortex"].weight_hh_l0.detach().double().numpy().reshape(3, 5, 5)
    assert len(pictures) == len(weights)
    for picture, matrix in zip(pictures, weights, strict=True):
        drawn = [complex(float(x), -float(y)) for x, y in re.findall(r"M(\S+) (\S+)h0", picture["path"])]
        wanted = np.linalg.eigvals(matrix)
        np.testing.assert_allclose(np.sort_complex(np.round(drawn, 3)), np.sort_complex(np.round(wanted, 3)), atol=2e-3)
        assert picture["largest"] == pytest.approx(np.abs(wanted).max(), rel=1e-9)
        assert picture["reach"] >= max(1.0, picture["largest"])
    layered = opened.table["model_id"].to_pylist().index("deep")
    assert len(portraits(opened)["spectra"][layered]) == 8


def test_neighbours_on_the_map_are_the_nearest_of_both_zoos(page, mine, reference):
    data = page[0].data
    values = [safetensors.torch.load_file(f"{path}.safetensors")["embedding"].double() for path in (mine, reference)]
    status = [open_zoo(path).table["status"].to_pylist() for path in (mine, reference)]
    kept = np.array([one != "diverged" for side in status for one in side])
    joined = torch.cat(values).numpy()[kept]
    spread = joined.std(axis=0)
    apart = (joined - joined.mean(axis=0)) / np.where(spread > 0, spread, 1)
    distance = np.linalg.norm(apart[:, None] - apart, axis=-1)
    model = np.array(data["model"])
    distance[model[:, None] == model] = np.inf
    assert data["without_reference"] == 3
    assert data["row"] == 0
    assert data["maps"][0]["neighbours"] == np.argsort(distance, axis=1, kind="stable")[:, :5].tolist()
    zoo = data["columns"][0]
    assert zoo["name"] == "zoo"
    assert [zoo["values"][code] for code in zoo["codes"]] == ["mine"] * 3 + ["reference: others"] * (len(model) - 3)
    assert {data["models"][code] for code in model[:3]} == {"cortex", "deep", "hippocampus"}


def test_a_reference_that_another_encoder_has_embedded_is_refused(mine, reference, tmp_path, capsys):
    torch.manual_seed(1)
    other = MessagePassing(embedding_dim=8, edge_dim=4, node_dim=4, product_dim=2)
    other.save_pretrained(tmp_path / "encoder")
    embed(tmp_path / "encoder", reference, tmp_path / "e.safetensors")
    command = ["run", "--zoo", str(mine), "--embeddings", f"{mine}.safetensors", "--out", str(tmp_path / "p")]
    assert main([*command, "--reference", str(reference), str(tmp_path / "e.safetensors")]) == 2
    assert "was not made by the encoder of any embedding of" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_what_is_asked_for_by_name_is_still_refused_where_it_cannot_be_probed(mine, tmp_path, capsys):
    command = ["run", "--zoo", str(mine), "--out", str(tmp_path / "p")]
    for options in ([], ["--embeddings", f"{mine}.safetensors", "--targets", "state_effective_rank"]):
        assert main([*command, *options]) == 2
        assert "No target can be probed: state_effective_rank on in_distribution" in capsys.readouterr().err


def test_the_models_of_a_large_zoo_are_not_shown_one_by_one(reference):
    opened = open_zoo(reference)
    assert opened.num_rows > MOST_SHOWN
    assert portraits(opened) is None
