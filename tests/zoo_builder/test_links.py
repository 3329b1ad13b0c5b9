"""Links at every level of a zoo: nothing outside the folder is deleted or written, nothing inside but what is ours."""

import contextlib
import io
import shutil

import pytest

from tests.weightspace.test_store import content
from weightspace.store import clean_staging, empty_staging, remove_shard, stage_table, verify, write_shard
from zoo_builder import cli
from zoo_builder.build import build
from zoo_builder.planning.plan import make_plan
from zoo_builder.share import Share
from zoo_builder.workers import worker

RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 2, "input_size": 1, "output_size": 1}],
    "learning": {"class": "Planted"},
    "snapshots": [0],
    "models_per_cohort": 4,
    "shard_size": 2,
    "labels": ["MemoryMode"],
}
LEVELS = [
    "shards",
    "shards/00000",
    "shards/00001/params.safetensors",
    "shards/00001/table.parquet",
    "shards/00001/shard.json",
    "zoo.json",
    "models.parquet",
    "README.md",
]

STAGED = ("plan.json", "lock", "labelling.json")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run_here(job, indices, workers, report):
    plan = make_plan(job["recipe"])
    for index in indices:
        worker._make(job, plan, plan.shards[index], io.StringIO())
        report({"done": index})


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo_builder.build.run_shards", run_here)
        patch.setattr("zoo_builder.relabel.run_shards", run_here)
        yield


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = tmp_path_factory.mktemp("intact") / "zoo"
    build(RECIPE, path, engine=run_here, method="torch")
    return path


@pytest.fixture
def zoo(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "zoo")


def everything(zoo):
    """Every command that writes or deletes, on a folder that may be anything; statuses."""
    yield cli.main(["verify", str(zoo), "--repair"])
    yield cli.main(["label", str(zoo), "--labels", "Rank"])
    for share in (None, Share(1, 2)):
        with contextlib.suppress(ValueError, OSError):
            build(RECIPE, zoo, engine=run_here, method="torch", share=share)


@pytest.mark.parametrize("damage", [True, False], ids=["damaged", "intact"])
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_deleted_or_written_through_a_link(zoo, tmp_path, capsys, level, finished, damage):
    outside = tmp_path / "elsewhere"
    (zoo / level).rename(outside)
    if not finished and level != "zoo.json":
        (zoo / "zoo.json").unlink()
    if damage:
        # What a builder would want to take away or make anew.
        for file in [outside] if outside.is_file() else sorted(outside.rglob("*.safetensors")):
            file.write_bytes(file.read_bytes()[:-1])
    (zoo / level).symlink_to(outside)
    before, inside = outside.read_bytes() if outside.is_file() else contents(outside), contents(zoo)
    assert all(status in (0, 1, 2) for status in everything(zoo))
    assert (outside.read_bytes() if outside.is_file() else contents(outside)) == before
    assert (zoo / level).is_symlink()
    assert set(inside) <= set(contents(zoo)) | {"zoo.json"}
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("level", [*LEVELS, ".staging", *(f".staging/{name}" for name in STAGED)])
def test_a_dangling_link_or_one_to_an_empty_folder_is_not_written_through(zoo, tmp_path, capsys, level):
    for target in (tmp_path / "nothing", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        path = zoo / level
        path.parent.mkdir(exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(target)
        assert all(status in (0, 1, 2) for status in everything(zoo))
        assert not (tmp_path / "nothing").exists()
        assert list((tmp_path / "empty").iterdir()) == []
        assert path.is_symlink()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("level", ["shards", "shards/00000", ".staging", ".staging/tables-0"])
def test_the_store_itself_refuses_links(tmp_path, level):
    zoo, outside = tmp_path / "zoo", tmp_path / "elsewhere"
    (zoo / level).parent.mkdir(parents=True)
    # As a folder of a zoo, and as one of a writer that is dead.
    for name in ("00000", "tables-0", "plan.json"):
        (outside / name).mkdir(parents=True)
        (outside / name / "shard.json").write_text("mine")
    (zoo / level).symlink_to(outside)
    before = contents(outside)
    for write in (
        lambda: write_shard(zoo, 0, content(), "p"),
        lambda: remove_shard(zoo, 0),
        lambda: stage_table(zoo, "0", 0, content().table),
    ):
        with contextlib.suppress(ValueError):
            write()
        clean_staging(zoo)
        empty_staging(zoo)
        assert contents(outside) == before


def test_a_zoo_that_is_reached_through_links_is_built_and_repaired_like_any_other(intact, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    path = tmp_path / "data" / "zoo"
    build(RECIPE, path, engine=run_here, method="torch")
    (path / "shards/00001/params.safetensors").unlink()
    assert cli.main(["verify", str(path), "--repair"]) == 0
    assert contents(path) == contents(intact)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(OSError, match="nowhere could not be written"):
        build(RECIPE, tmp_path / "nowhere", engine=run_here, method="torch")


@pytest.mark.parametrize("names", [["shards/a.tar", "README.md"], [".staging/mine", "notes.md"], ["zoo.json"]])
def test_a_folder_with_somebody_elses_files_of_the_same_names_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="holds other files; give an empty or new folder"):
        build(RECIPE, tmp_path, engine=run_here, method="torch")
    assert contents(tmp_path) == before


def test_what_no_builder_made_stays_where_it_is(zoo, intact):
    (zoo / ".staging/mine").mkdir(parents=True)
    for name in (".staging/mine/notes.txt", ".staging/notes.txt", "notes.txt"):
        (zoo / name).write_text("mine")
    (zoo / "shards/00001/params.safetensors").write_bytes(b"")
    assert cli.main(["verify", str(zoo), "--repair"]) == 0
    found = contents(zoo)
    assert {found.pop(name) for name in (".staging/mine/notes.txt", ".staging/notes.txt", "notes.txt")} == {b"mine"}
    assert found == contents(intact)
    assert verify(zoo) == []


def test_a_shard_that_holds_other_files_is_not_taken_away(zoo):
    (zoo / "shards/00001/.git").mkdir()
    (zoo / "shards/00001/.git/HEAD").write_text("mine")
    (zoo / "shards/00001/params.safetensors").write_bytes(b"")
    assert cli.main(["verify", str(zoo), "--repair"]) == 2
    assert (zoo / "shards/00001/.git/HEAD").read_text() == "mine"
    with pytest.raises(ValueError, match=r"\.git was not made by a builder and is not deleted; move it away"):
        remove_shard(zoo, 1)
