"""Labels added to a finished zoo: the bytes of a zoo that was built with them, whatever happens on the way."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from weightspace.store import open_zoo, staged_tables, verify
from zoo_builder import cli
from zoo_builder.build import build, repair
from zoo_builder.executor import ROLLOUTS
from zoo_builder.members import Members
from zoo_builder.planning import recipe
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.relabel import relabel
from zoo_builder.shard import stage_shard
from zoo_builder.workers import making
from zoo_builder.workers.processes import run_shards

RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 3, "nonlinearity": "relu"}, {"class": "GRU", "hidden_size": 2}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 5, "delay": {"integers": [1, 4]}}],
    # The largest rate makes models diverge.
    "learning": {"class": "BPTT", "num_updates": 3, "batch_size": 3, "learning_rate": {"choice": [0.01, 1e38]}},
    "snapshots": [0, 3],
    "models_per_cohort": 3,
    "shard_size": 3,
    "labels": ["Performance"],
    "rollouts": {"sequences": 2},
}
ADDED = ["NonNormality", "GradientFlow"]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run_here(job, indices, workers, report):
    """Make shards in this process, which has a worker's environment already, to save the start of one."""
    plan = make_plan(job.recipe, Path(job.out))
    for index in indices:
        making.make_and_report(job, plan, plan.shards[index], io.StringIO())
        report({"done": index})


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo_builder.build.run_shards", run_here)
        patch.setattr("zoo_builder.relabel.run_shards", run_here)
        yield


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A zoo with one of the labels."""
    path = tmp_path_factory.mktemp("bare") / "zoo"
    build(RECIPE, path, workers=1)
    return path


@pytest.fixture(scope="module")
def promised(tmp_path_factory):
    """What a zoo built with all labels holds."""
    path = tmp_path_factory.mktemp("promised") / "zoo"
    build({**RECIPE, "labels": ["Performance", *ADDED]}, path, workers=1)
    return contents(path)


@pytest.fixture(scope="module")
def staged(bare, promised, tmp_path_factory):
    """The first zoo with all new tables written aside, by a worker process, and none in place."""
    path = tmp_path_factory.mktemp("staged") / "zoo"
    shutil.copytree(bare, path)

    def stop(*arguments):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo_builder.relabel.run_shards", run_shards)
        patch.setattr("weightspace.store.publish_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            relabel(path, ADDED, workers=1)
    return path


def test_added_labels_have_the_bytes_of_labels_measured_at_build(staged, promised, tmp_path, capsys):
    zoo = shutil.copytree(staged, tmp_path / "zoo")
    assert cli.main(["label", str(zoo), "--labels", *ADDED, "--workers", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"gradient_log_slope", "jacobian_henrici", "weight_hh_0_z_henrici"} <= set(printed["columns"])
    assert printed["fingerprint"] == open_zoo(zoo).fingerprint
    assert contents(zoo) == promised
    assert verify(zoo) == []
    (zoo / "shards/00001/table.parquet").write_bytes(b"")
    assert repair(zoo, workers=1) == []
    assert contents(zoo) == promised
    # What was measured before comes out the same when it is measured again.
    relabel(zoo, ["Performance"], workers=1)
    assert contents(zoo) == promised


def test_labels_do_not_depend_on_which_models_are_measured_together(bare, promised, tmp_path):
    zoo = shutil.copytree(bare, tmp_path / "zoo")
    plan = make_plan(read_recipe({**RECIPE, "labels": ["Performance", *ADDED]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo_builder.shard.chunk_size", lambda device: 2)
        method = ROLLOUTS[open_zoo(zoo).manifest["executor"]["method"]]
        for shard in plan.shards:
            stage_shard(zoo, plan, shard, ADDED, "key", method=method)
    for file in (zoo / ".staging/tables-key").iterdir():
        assert file.read_bytes() == promised[f"shards/{file.stem}/table.parquet"]
    assert staged_tables(zoo, "key", len(plan.shards)) == [0, 1]


def test_until_the_tables_are_put_into_place_the_zoo_is_the_old_one(bare, staged):
    old, found = contents(bare), contents(staged)
    assert {name: data for name, data in found.items() if not name.startswith(".staging/")} == old
    assert verify(staged) == []


class Crash(BaseException):
    """The machine stops here."""


class Machine:
    """Makes every rename, fsync, unlink and removal from the `last` one on fail, and counts them."""

    def __init__(self, patch, last):
        self.last, self.calls = last, 0
        for module, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (Path, "unlink"), (shutil, "rmtree")):
            patch.setattr(module, name, self._counting(getattr(module, name)))

    def _counting(self, call):
        def counting(*arguments, **options):
            self.calls += 1
            if self.calls > self.last:
                raise Crash
            return call(*arguments, **options)

        return counting


def test_a_crash_at_any_place_leaves_no_mixture_and_the_same_command_finishes(bare, staged, promised, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, 10**6)
        relabel(shutil.copytree(staged, tmp_path / "whole"), ADDED)
    assert machine.calls > 25
    unfinished = 0
    for last in range(machine.calls):
        zoo = shutil.copytree(staged, tmp_path / str(last))
        with pytest.MonkeyPatch.context() as patch:
            Machine(patch, last)
            with pytest.raises(Crash):
                relabel(zoo, ADDED)
        if (zoo / "zoo.json").exists():
            assert verify(zoo) == []
            without = {name: data for name, data in contents(zoo).items() if not name.startswith(".staging/")}
            assert without in (contents(bare), promised)
        else:
            unfinished += 1
            with pytest.raises(ValueError, match="unfinished"):
                open_zoo(zoo)
            with pytest.raises(ValueError, match="--labels NonNormality GradientFlow"):
                relabel(zoo, ["Memory"])
        relabel(zoo, ADDED)
        assert contents(zoo) == promised
        shutil.rmtree(zoo)
    assert unfinished > 15


def test_what_cannot_be_labelled_is_refused_with_the_reason_and_left_alone(bare, tmp_path, capsys):
    before = contents(bare)
    for labels, message in ((["Activty"], "Did you mean 'Activity'"), (["Memory"], "cannot be labelled here")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("weightspace.__version__", "9.9")
            assert cli.main(["label", str(bare), "--labels", *labels]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["label", str(tmp_path / "none"), "--labels", "Memory"]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert contents(bare) == before
    zoo = shutil.copytree(bare, tmp_path / "zoo")
    (zoo / "shards/00001/params.safetensors").write_bytes(b"")
    assert cli.main(["label", str(zoo), "--labels", "Memory"]) == 2
    assert "verify" in capsys.readouterr().err


def other(patch):
    patch.setattr("weightspace.__version__", "9.9")


def test_another_version_measures_only_when_asked_and_then_the_zoo_says_so(bare, promised, tmp_path, capsys):
    zoo = shutil.copytree(bare, tmp_path / "zoo")
    before = contents(zoo)
    command = ["label", str(zoo), "--workers", "1", "--labels", "NonNormality"]
    with pytest.MonkeyPatch.context() as patch:
        other(patch)
        assert cli.main(command) == 2
        printed = capsys.readouterr().err
        assert "`--other_version` measures with what is here" in printed
        assert "generator.version was" in printed
        assert contents(zoo) == before
        assert cli.main([*command, "--other_version"]) == 0
    assert verify(zoo) == []
    opened = open_zoo(zoo)
    said = {
        name: label.get("measured_with", {}).get("generator", {}) for name, label in opened.manifest["labels"].items()
    }
    assert said["jacobian_henrici"]["version"] == "9.9"
    assert said["score"] == {}
    assert opened.manifest["generator"] == open_zoo(bare).manifest["generator"]
    # Weights are as they were, and so are the labels that were there; the new ones are those of a build with them.
    for name, data in before.items():
        assert (zoo / name).read_bytes() == data or name.endswith((".parquet", ".json", ".md"))
    whole = tmp_path / "whole"
    for name, data in promised.items():
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / name).write_bytes(data)
    kept = [name for name in opened.table.column_names if name in open_zoo(whole).table.column_names]
    assert opened.table.select(kept).equals(open_zoo(whole).table.select(kept))
    assert {"score", "jacobian_henrici"} <= set(kept)
    # No build of the recipe ends in these bytes, so nothing pretends to.
    (zoo / "shards/00001/table.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be repaired: other versions measured .*jacobian_henrici"):
        repair(zoo, workers=1)


def test_measured_again_with_the_first_version_all_is_as_promised(bare, promised, tmp_path):
    zoo = shutil.copytree(bare, tmp_path / "zoo")
    with pytest.MonkeyPatch.context() as patch:
        other(patch)
        relabel(zoo, ["NonNormality"], other_version=True)
    relabel(zoo, ["GradientFlow"])
    assert "measured_with" in open_zoo(zoo).manifest["labels"]["jacobian_henrici"]
    assert "measured_with" not in open_zoo(zoo).manifest["labels"]["gradient_log_slope"]
    relabel(zoo, ["NonNormality"])
    relabel(zoo, ["Performance"])
    assert contents(zoo) == promised
    # Where nothing differs there is nothing to record.
    relabel(zoo, ["NonNormality"], other_version=True)
    assert contents(zoo) == promised


def test_a_version_that_makes_other_models_of_the_recipe_is_refused(bare, tmp_path, monkeypatch):
    zoo = shutil.copytree(bare, tmp_path / "zoo")
    before = contents(zoo)
    other(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        values = {"delay": torch.tensor(2.0)}
        patch.setattr(
            "zoo_builder.planning.plan.Cohort.members",
            lambda self, seed, ids: Members(seed, ids, {k: v.expand(len(ids)) for k, v in values.items()}),
        )
        with pytest.raises(ValueError, match="not those that this version makes of the recipe"):
            relabel(zoo, ["NonNormality"], other_version=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipe.DEFAULTS, "shuffle", True)
        with pytest.raises(ValueError, match="reads its recipe in another way"):
            relabel(zoo, ["NonNormality"], other_version=True)
    found = contents(zoo)
    assert {name: data for name, data in found.items() if not name.startswith(".staging/")} == before
