"""Exports that take the place of earlier ones: killed at any call, met by files of others, led astray by links."""

import contextlib
import itertools
import os
import shutil
from pathlib import Path

import pytest

from tests.weightspace.test_hub import files
from tests.weightspace.zoos import FAMILIES, write_zoo
from weightspace import store
from weightspace.exchange import hub


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoos")
    return [write_zoo(folder / f"{n}", FAMILIES[:1], models=5, steps=(1,), rollouts=False, seed=n) for n in range(2)]


@pytest.fixture(scope="module")
def exports(zoos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return [files(hub.export(zoo, folder / str(n))) for n, zoo in enumerate(zoos)]


class KilledError(BaseException):
    """The end of a process: from then on nothing of what it calls is done."""


class Mortal:
    """Lets a process die before its k-th call that changes the disk: that one and all later ones raise."""

    CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")

    def __init__(self, patch, last):
        self.left, self.real = last, {name: getattr(os, name) for name in self.CALLS}
        for name in self.CALLS:
            patch.setattr(os, name, lambda *args, name=name, **options: self.call(name, args, options))

    def call(self, name, args, options):
        self.left -= 1
        if self.left < 0:
            raise KilledError
        return self.real[name](*args, **options)


def test_an_export_killed_at_any_call_loses_nothing_and_the_next_ends_in_the_same_bytes(
    zoos, exports, tmp_path, monkeypatch
):
    # Only what is written counts here, not how it is come by.
    monkeypatch.setattr(hub, "_write", lambda zoo, folder, license: unpack(exports[1], folder))
    lost = 0
    for last in itertools.count():
        parent = tmp_path / str(last)
        unpack(exports[0], parent / "dataset")
        with pytest.MonkeyPatch.context() as patch:
            mortal = Mortal(patch, last)
            with contextlib.suppress(KilledError):
                hub.export(zoos[1], parent / "dataset")
        found = files(parent / "dataset")
        assert found in ([*exports, {}])
        if mortal.left >= 0:
            break
        lost += not found
        # Whoever comes next puts back what was there, even if it then fails.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hub, "_write", fail)
            with pytest.raises(OSError, match="full"):
                hub.export(zoos[1], parent / "dataset")
        assert files(parent / "dataset") == (found or exports[0])
        hub.export(zoos[1], parent / "dataset")
        assert files(parent / "dataset") == exports[1]
        assert [path.name for path in parent.iterdir()] == ["dataset"]
    assert found == exports[1]
    assert last > 20
    # Between the two renames, where the next command still finds it.
    assert 1 <= lost <= 3


def unpack(contents, folder):
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        store.write_flushed(folder / name, data)


def fail(*args):
    raise OSError(28, "full")


THEIRS = [".git/config", "notes.txt", "weights/mine.parquet", "weights/old/train-00000-of-00001.parquet",
          "weights/train-00001-of-00002.parquet", "README.md", "models.parquet", "data/x"]  # fmt: skip


@pytest.mark.parametrize("name", THEIRS)
def test_what_an_export_did_not_write_is_never_replaced(zoos, exports, tmp_path, name):
    out = hub.export(zoos[0], tmp_path / "dataset")
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("years of work")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"is not as `weightspace export` wrote it, and replacing .* move it away"):
        hub.export(zoos[1], out)
    assert files(tmp_path) == before


def test_a_file_that_appears_while_an_export_is_written_is_kept(zoos, exports, tmp_path, monkeypatch):
    out, card = hub.export(zoos[0], tmp_path / "dataset"), hub._card

    def meanwhile(*args):
        (out / "mine").write_text("years of work")
        return card(*args)

    monkeypatch.setattr(hub, "_card", meanwhile)
    with pytest.raises(ValueError, match=r"\.dataset\.export/earlier holds what no export wrote; move it away"):
        hub.export(zoos[1], out)
    assert files(out) == exports[1]
    assert files(tmp_path / ".dataset.export") == {"earlier/mine": b"years of work"}


def link_tree(folder, elsewhere, name):
    """Move NAME of a folder elsewhere, and leave a link to it."""
    target = elsewhere / name.replace("/", "-")
    shutil.move(folder / name, target)
    (folder / name).symlink_to(target)


@pytest.mark.parametrize("name", ["weights", "README.md", "export.json", "weights/train-00000-of-00001.parquet"])
def test_links_inside_an_export_are_refused_and_what_they_lead_to_stays(zoos, tmp_path, name):
    out = hub.export(zoos[0], tmp_path / "dataset")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link_tree(out, elsewhere, name)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="is not as `weightspace export` wrote it"):
        hub.export(zoos[1], out)
    assert files(tmp_path) == before


@pytest.mark.parametrize("made", ["link", "link/new", "link/earlier", "folder/new", "folder/earlier"])
def test_what_others_have_put_in_the_way_of_an_export_stays(zoos, tmp_path, made):
    out, aside, elsewhere = tmp_path / "dataset", tmp_path / ".dataset.export", tmp_path / "elsewhere"
    hub.export(zoos[0], elsewhere / "theirs")
    kind, _, name = made.partition("/")
    if name:
        aside.mkdir()
    if kind == "link":
        (aside / name).symlink_to(elsewhere / "theirs")
    else:
        (aside / name).mkdir()
        (aside / name / "thesis.tex").write_text("years of work")
    before = files(tmp_path)
    # A folder `earlier` is taken for the export that was there, and then found to be none.
    with pytest.raises((ValueError, OSError)) as caught:
        hub.export(zoos[1], out)
    assert len(str(caught.value).splitlines()) == 1
    after = files(tmp_path)
    assert sorted(after.values()) == sorted(before.values())
    assert {key: value for key, value in after.items() if key.startswith("elsewhere")} == {
        key: value for key, value in before.items() if key.startswith("elsewhere")
    }


def test_a_staging_folder_beside_an_export_is_somebody_elses(zoos, exports, tmp_path):
    (tmp_path / "elsewhere" / "thesis").mkdir(parents=True)
    (tmp_path / store.STAGING).symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    out = hub.export(zoos[0], tmp_path / "dataset")
    assert files(out) == exports[0]
    assert sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(out)) == before


def test_a_link_to_the_folder_or_above_it_is_followed_once(zoos, exports, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert hub.export(zoos[0], tmp_path / "link" / "dataset") == tmp_path / "real" / "dataset"
    (tmp_path / "again").symlink_to(tmp_path / "real" / "dataset")
    hub.export(zoos[1], tmp_path / "again")
    assert (tmp_path / "again").is_symlink()
    assert files(tmp_path / "real" / "dataset") == exports[1]
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["dataset"]


def test_an_export_into_its_own_zoo_is_refused(zoos, tmp_path):
    zoo = shutil.copytree(zoos[0], tmp_path / "zoo")
    before = files(tmp_path)
    for out in (zoo / "dataset", zoo / "shards" / "dataset"):
        with pytest.raises(ValueError, match="is inside the zoo"):
            hub.export(zoo, out)
    assert files(tmp_path) == before


def test_an_empty_folder_is_filled_and_two_exports_to_one_folder_wait(zoos, exports, tmp_path):
    (tmp_path / "dataset").mkdir()
    assert files(hub.export(zoos[0], Path(tmp_path / "dataset"))) == exports[0]
    (tmp_path / ".dataset.export").mkdir()
    ticks = itertools.count()
    with store.locked(tmp_path / ".dataset.export"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: 10.0 * next(ticks))
        with pytest.raises(ValueError, match="Another builder is at work"):
            hub.export(zoos[1], tmp_path / "dataset")
    assert files(tmp_path / "dataset") == exports[0]
