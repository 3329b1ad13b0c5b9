"""Zoos made again of exports, here and on the Hub: the same bytes, to learn from without labels."""

import inspect
import json
import logging
import shutil

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import torch

import weightspace as ws
from tests.weightspace.test_face import small_encoder
from tests.weightspace.zoos import write_zoo
from weightspace import store
from weightspace.data.datamodule import ZooDataModule
from weightspace.exchange import flat, hub, unpacked
from weightspace.objectives.state_geometry import StateGeometry
from weightspace.training.module import EmbeddingModule, fit

DOWNLOAD = huggingface_hub.hf_hub_download


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = write_zoo(tmp_path_factory.mktemp("unpacked") / "zoo", models=6, shards_per_family=2)
    # As a builder leaves it: the card's title is that of the recipe.
    head = {k: v for k, v in ws.open_zoo(path).manifest.items() if k not in ("files", "shards", *unpacked.MADE_ANEW)}
    store.finish(path, {**head, "recipe": {"title": "A zoo for tests"}}, 6, "A zoo for tests")
    return path


@pytest.fixture(scope="module")
def exported(zoo):
    return hub.export(zoo, zoo.parent / "exported")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weightspace"


@pytest.fixture
def repository(exported, tmp_path, monkeypatch):
    """The client of a Hub that has one dataset, me/zoo, and keeps the names that it was asked for."""
    asked = []

    def download(repo, name, **options):
        inspect.signature(DOWNLOAD).bind(repo, name, **options)
        assert (repo, options) == ("me/zoo", {"repo_type": "dataset"})
        asked.append(name)
        return str(exported / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    return asked


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_opens_as_the_zoo_that_it_was_byte_for_byte(zoo, exported, cache, monkeypatch):
    monkeypatch.setattr(unpacked, "logger", None)
    opened = ws.open_zoo(exported)
    assert opened.fingerprint == ws.open_zoo(zoo).fingerprint
    assert files(opened.path) == files(zoo)
    assert opened.path.parent == cache
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert ws.open_zoo(exported).path == opened.path
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == made


def test_a_repository_opens_as_its_zoo_and_only_named_files_are_asked_for(zoo, exported, repository):
    assert ws.open_zoo("me/zoo").fingerprint == ws.open_zoo(zoo).fingerprint
    record = json.loads((exported / "export.json").read_text())
    assert sorted(repository) == sorted([*record["files"], "export.json"])


def test_row_groups_need_not_end_where_shards_do(zoo, tmp_path, monkeypatch):
    for name, number in (("ROWS_PER_GROUP", 7), ("BYTES_PER_GROUP", 3000), ("BYTES_PER_FILE", 9000)):
        monkeypatch.setattr(flat, name, number)
    exported = hub.export(zoo, tmp_path / "dataset")
    assert len(list((exported / "rollouts").iterdir())) > 2
    assert ws.open_zoo(exported).fingerprint == ws.open_zoo(zoo).fingerprint


def test_an_encoder_learns_without_labels_from_an_export(zoo, exported, repository, tmp_path):
    losses = {}
    for source in (str(zoo), "me/zoo"):
        torch.manual_seed(0)
        module = EmbeddingModule(small_encoder(), StateGeometry(width=8, sequences_per_model=2))
        run = tmp_path / source.replace("/", "-")
        fit(module, ZooDataModule(source), run, max_epochs=1)
        losses[source] = (run / "metrics.csv").read_text()
    assert len(set(losses.values())) == 1
    assert ws.embed(ws.open_zoo("me/zoo")).equal(ws.embed(ws.open_zoo(zoo)))


def test_a_zoo_without_rollouts_exports_none_and_comes_back(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", models=5, rollouts=False)
    exported = hub.export(zoo, tmp_path / "exported")
    assert not (exported / "rollouts").exists()
    assert not ws.open_zoo(exported).shards[0].has_rollouts


def test_the_rollouts_of_the_card_are_those_of_the_zoo(zoo, exported):
    text = (exported / "README.md").read_text()
    data = huggingface_hub.DatasetCard(text).data.to_dict()
    assert [config["config_name"] for config in data["configs"]] == ["models", "weights", "rollouts"]
    assert (data["size_categories"], data["library_name"]) == (["n<1K"], "weightspace")
    assert data["task_categories"] == ["feature-extraction"]
    assert {"family:GRU", "family:Elman", "task:DelayedRecall", "task:TiledDigits"} <= set(data["tags"])
    assert "## Fields of `rollouts`" in text
    (part,) = (exported / "rollouts").iterdir()
    rows, opened = pq.read_table(part), ws.open_zoo(zoo)
    assert rows["model_id"].to_pylist() == opened.table["model_id"].to_pylist()
    for number in (0, opened.num_rows - 1):
        row, (x, outputs) = rows.slice(number, 1).to_pylist()[0], opened.rollouts([number])
        assert row["shapes"] == [list(x.shape[1:]), list(outputs.shape[1:])]
        assert row["numbers"] == [*x.flatten().tolist(), *outputs.flatten().tolist()]


def damaged(exported, folder, change):
    copy = shutil.copytree(exported, folder)
    record = json.loads((copy / "export.json").read_text())
    change(copy, record)
    (copy / "export.json").write_text(json.dumps(record))
    return copy


def cut(copy, record):
    (copy / "models.parquet").write_bytes((copy / "models.parquet").read_bytes()[:-1])


def without_rows(copy, record):
    name = "weights/train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(copy / name).slice(0, 9), copy / name)
    record["files"][name] = store.file_entry(copy / name)


def in_another_order(copy, record):
    name = "weights/train-00000-of-00001.parquet"
    rows = pq.read_table(copy / name)
    pq.write_table(rows.take(list(reversed(range(len(rows))))), copy / name)
    record["files"][name] = store.file_entry(copy / name)


def without_plan(copy, record):
    del record["zoo"]["plan"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "models.parquet is missing or not as it was exported"),
        (without_rows, r"have fewer rows than models\.parquet"),
        (in_another_order, "The rows of 'weights' are not in the order"),
        (without_plan, "does not say how the zoo was made"),
    ],
)
def test_what_is_no_export_is_refused_and_no_zoo_is_left(exported, cache, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        ws.open_zoo(damaged(exported, tmp_path / "copy", change))
    assert list(cache.rglob("zoo.json")) == []


def test_a_file_outside_the_names_of_an_export_is_never_asked_for(exported, tmp_path):
    def reach(copy, record):
        record["files"]["../secret.py"] = {"bytes": 1, "sha256": "0" * 64}

    with pytest.raises(ValueError, match="is not what `weightspace export` writes"):
        ws.open_zoo(damaged(exported, tmp_path / "copy", reach))


def test_what_is_neither_here_nor_on_the_hub_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="There is no folder nobody/nothing, and the files of such a dataset cannot"):
        ws.open_zoo("nobody/nothing")
    with pytest.raises(ValueError, match="-a/b is neither a folder nor a repository OWNER/NAME"):
        ws.open_zoo("-a/b")


def test_a_slip_beside_folders_that_are_here_does_not_ask_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("weightspace.exchange.unpacked.located", lambda source: pytest.fail("the Hub was asked"))
    with pytest.raises(ValueError, match="runs/zoo"):
        ws.open_zoo("runs/zoo")


def test_another_fingerprint_is_said(exported, tmp_path, caplog):
    def older(copy, record):
        record["zoo"]["digest"] = "0" * 64

    with caplog.at_level(logging.WARNING):
        ws.open_zoo(damaged(exported, tmp_path / "copy", older))
    assert "another fingerprint" in caplog.text
