"""Bytes that depend on the recipe alone: not on clock, zone, language or machine; and what repair gives back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Lightning's log handler keeps the stderr of its first import, which must outlive the capture of one test.
import lightning.pytorch  # noqa: F401
import pytest
import yaml

import probes.cli
import weightspace.cli
from tests.zoo_builder.test_relabel import contents, run_here
from weightspace.store import open_zoo, verify
from zoo_builder import cli
from zoo_builder.build import build

ROOT = Path(__file__).parents[2]
RECIPE = {
    "families": [{"class": "Elman", "hidden_size": [2, 3]}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 5, "delay": {"integers": [1, 4]}}],
    "learning": {"class": "BPTT", "num_updates": 3, "batch_size": 3},
    "snapshots": [0, 3],
    "models_per_cohort": 6,
    "shard_size": 3,
    "labels": ["Performance"],
    "rollouts": {"sequences": 2},
}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo_builder.build.run_shards", run_here)
        yield


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "zoo"
    assert build(RECIPE, path, workers=1, engine=run_here).built == 4
    return path


# Python runs this at its start, in the builder and in its workers: another year, another machine, another hash seed.
ELSEWHERE = """
import os, socket, time
for name in ("time", "time_ns"):
    real = getattr(time, name)
    setattr(time, name, lambda real=real: real() * 2)
socket.gethostname = lambda: "elsewhere"
"""


def test_bytes_depend_neither_on_clock_nor_zone_nor_language_nor_machine_nor_folder(zoo, tmp_path):
    other = tmp_path / "ein anderer Ordner = ß"
    other.mkdir()
    (tmp_path / "sitecustomize.py").write_text(ELSEWHERE)
    (other / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "PYTHONHASHSEED": "77",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "tr_TR.UTF-8",
        "HOME": str(other),
        # Elsewhere the engine would be compiled once more.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
    }
    command = [sys.executable, "-m", "zoo_builder", "build", "--config", "recipe.yaml", "--out", "zoo"]
    ended = subprocess.run([*command, "--workers", "1"], cwd=other, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert contents(other / "zoo") == contents(zoo)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(folder):
    (folder / "00000").rename(folder / "swapped")
    (folder / "00001").rename(folder / "00000")
    (folder / "swapped").rename(folder / "00001")


PARAMS = "params.safetensors"
DAMAGE = [
    (lambda z: flip(z / "shards/00001" / PARAMS), {"shards/00001/params.safetensors"}, {"00001"}),
    (lambda z: os.truncate(z / "shards/00002" / PARAMS, 40), {"shards/00002/params.safetensors"}, {"00002"}),
    (lambda z: (z / "shards/00003/table.parquet").unlink(), {"shards/00003/table.parquet"}, {"00003"}),
    (lambda z: (z / "shards/00000/shard.json").write_text("{}"), {"shards/00000/shard.json"}, {"00000"}),
    (lambda z: shutil.rmtree(z / "shards/00002"), {"shards/00002"}, {"00002"}),
    (lambda z: swap(z / "shards"), {f"shards/0000{i}/{n}" for i in (0, 1) for n in ("*",)}, {"00000", "00001"}),
    (lambda z: flip(z / "models.parquet"), {"models.parquet"}, set()),
    (lambda z: (z / "README.md").unlink(), {"README.md"}, set()),
]


@pytest.mark.parametrize(("damage", "named", "rebuilt"), DAMAGE)
def test_verify_names_what_is_damaged_and_repair_rebuilds_that_alone(zoo, tmp_path, capsys, damage, named, rebuilt):
    path = shutil.copytree(zoo, tmp_path / "zoo")
    damage(path)
    before = {p: p.stat().st_ino for p in path.rglob("*") if p.is_file()}
    assert cli.main(["verify", str(path), "--json"]) == 1
    found = {fault["path"] for fault in json.loads(capsys.readouterr().out)["faults"]}
    assert {Path(name).parts[:2] for name in found} == {Path(name).parts[:2] for name in named}
    assert found == named or any("*" in name for name in named)
    assert cli.main(["verify", str(path), "--repair"]) == 0
    assert contents(path) == contents(zoo)
    touched = {p.parts[-2] for p, inode in before.items() if p.exists() and p.stat().st_ino != inode}
    assert {name for name in touched if name.isdigit()} <= rebuilt


def test_files_that_no_builder_makes_are_named_and_left_to_the_user(zoo, tmp_path, capsys):
    path = shutil.copytree(zoo, tmp_path / "zoo")
    notes = path / "shards/00001/notes.txt"
    notes.write_text("x")
    (path / "models.parquet").unlink()
    assert cli.main(["verify", str(path), "--repair"]) == 1
    assert "'shards/00001/notes.txt': is not in zoo.json" in capsys.readouterr().out
    flip(path / "shards/00001" / PARAMS)
    assert cli.main(["verify", str(path), "--repair"]) == 2
    assert "notes.txt was not made by a builder and is not deleted" in capsys.readouterr().err
    assert notes.read_text() == "x"
    notes.unlink()
    assert cli.main(["verify", str(path), "--repair"]) == 0
    assert contents(path) == contents(zoo)


def test_an_edited_manifest_and_a_shard_too_many_are_named_and_left_to_the_user(zoo, tmp_path, capsys):
    path = shutil.copytree(zoo, tmp_path / "zoo")
    shutil.copytree(path / "shards/00000", path / "shards/00004")
    assert cli.main(["verify", str(path), "--repair"]) == 1
    assert "'shards/00004': is not in zoo.json" in capsys.readouterr().out
    shutil.rmtree(path / "shards/00004")
    manifest = json.loads((path / "zoo.json").read_bytes())
    manifest["recipe"]["learning"]["num_updates"] = 4
    (path / "zoo.json").write_text(json.dumps(manifest))
    assert cli.main(["verify", str(path)]) == 1
    assert "was edited" in capsys.readouterr().out
    assert cli.main(["verify", str(path), "--repair"]) == 2
    assert "Run the same `zoo-builder build` again" in capsys.readouterr().err
    assert build(RECIPE, path, workers=1, engine=run_here).built == 0
    assert contents(path) == contents(zoo)


def test_the_smallest_zoo_has_one_model(tmp_path):
    recipe = {**RECIPE, "families": [{"class": "GRU", "hidden_size": 1}], "models_per_cohort": 1, "snapshots": [3]}
    build(recipe, tmp_path / "zoo", workers=1, engine=run_here)
    opened = open_zoo(tmp_path / "zoo")
    assert (opened.num_rows, len(opened.stack([0]))) == (1, 1)
    assert opened.table["split"].to_pylist() == ["train"]
    assert verify(tmp_path / "zoo") == []
    assert cli.main(["info", str(tmp_path / "zoo")]) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"families": []}, "`families` is empty"),
        ({"models_per_cohort": 0}, r"`models_per_cohort` \(=0\) must be"),
        ({"snapshots": []}, "`snapshots` must be a list"),
    ],
)
def test_an_empty_zoo_is_refused(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        build({**RECIPE, **changed}, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_a_zoo_of_which_no_model_survives_is_whole_and_says_so(tmp_path, monkeypatch, capsys):
    learning = {**RECIPE["learning"], "learning_rate": 1e38, "clip": 0}
    families = [{"class": "Elman", "hidden_size": 3, "nonlinearity": "relu"}]
    recipe = {**RECIPE, "families": families, "learning": learning, "snapshots": [3], "models_per_cohort": 20}
    recipe["labels"] = ["Performance", "Rank", "Memory"]
    path = tmp_path / "zoo"
    build(recipe, path, workers=1, engine=run_here)
    opened = open_zoo(path)
    assert set(opened.table["status"].to_pylist()) == {"diverged"}
    assert all(tensor.isfinite().all() for stack in opened.stacks() for tensor in stack.params.values())
    assert verify(path) == []
    assert cli.main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["status"] == {"diverged": 20}
    # Nothing can be learned from it, which is said in a line.
    monkeypatch.chdir(tmp_path)
    config = ROOT / "configs/encoder/supervised-tiny.yaml"
    assert weightspace.cli.main(["fit", "--config", str(config), "--data.zoo", str(path)]) == 2
    assert probes.cli.main(["run", "--zoo", str(path), "--out", "probes"]) == 2
    printed = capsys.readouterr().err
    assert "has 0 values among the training rows" in printed
    assert "No target can be probed" in printed
    assert "Traceback" not in printed
