"""Atomic replacement of an export: the new folder is written aside, and other people's files are never deleted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from weightspace import store
from weightspace.terminal import shows_bars

RECORD = "export.json"
"""File that lists the files of an export, with the size and sha256 of each."""
FILES = re.compile(
    r"README\.md|models\.parquet|export\.json|tasks\.safetensors|(weights|rollouts)/train-\d{5}-of-\d{5}\.parquet"
)
FOLDERS = ("weights", "rollouts")


def record(folder: Path) -> dict[str, Any]:
    """The content of an export's record: `zoo` with its digest, and `files`; ValueError if it is no such record."""
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(f"{folder} has no {RECORD}: not an export; make one with `weightspace export`.")
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        is_record = isinstance(content["zoo"]["digest"], str) and all(
            FILES.fullmatch(name) and type(entry["bytes"]) is int and isinstance(entry["sha256"], str)
            for name, entry in content["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_record = False
    if not is_record:
        raise ValueError(f"{path} is not what `weightspace export` writes; export the zoo to a new folder.")
    return content


def refuse_foreign(out: Path) -> None:
    """Raise ValueError unless a folder is empty, or an export of which no file was added or changed."""
    if not os.path.lexists(out):
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / RECORD).is_file()):
        raise ValueError(f"{out} holds other files, not an earlier export; give an empty or new folder.")
    if not any(out.iterdir()):
        return
    files = record(out)["files"]
    for name in tqdm(list(_entries(out)), desc="earlier export", unit=" files", disable=not shows_bars()):
        if not _is_written(out, name, files):
            raise ValueError(
                f"{out / name} is not as `weightspace export` wrote it, and replacing the export would delete it; move "
                "it away, or give a new folder."
            )


def _entries(folder: Path) -> Iterator[str]:
    """Names of the entries of a folder and of the entries of `FOLDERS` in it; links are not followed."""
    for entry in sorted(folder.iterdir()):
        yield entry.name
        if entry.name in FOLDERS and _is_folder(entry):
            yield from (f"{entry.name}/{inner.name}" for inner in sorted(entry.iterdir()))


def _is_written(folder: Path, name: str, files: Mapping[str, Any]) -> bool:
    mode = (folder / name).lstat().st_mode
    if name in FOLDERS:
        return stat.S_ISDIR(mode)
    if not stat.S_ISREG(mode) or not FILES.fullmatch(name):
        return False
    return name == RECORD or (name in files and store.file_entry(folder / name) == files[name])


class Replacing:
    """The replacement of a folder `out`: written in `new`, until `publish` renames it over the earlier one.

    Both `new` and the earlier folder are kept in the hidden folder `.NAME.export` beside `out`, which is locked. A
    process killed between the two renames leaves the earlier folder there; the next one puts it back first.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.hidden = out, out.with_name(f".{out.name}.export")
        self.new, self._earlier = self.hidden / "new", self.hidden / "earlier"

    def publish(self) -> None:
        """Rename the new folder, which is flushed, to `out`."""
        store.fsync_folder(self.new)
        with store.naming(self.out, 0):
            if self.out.is_dir() and any(self.out.iterdir()):
                os.rename(self.out, self._earlier)
                store.fsync_folder(self.hidden)
            os.rename(self.new, self.out)
        store.fsync_folder(self.out.parent)

    def tidy(self) -> None:
        """Put the earlier folder back if `out` is not an export, and remove both folders in the hidden one."""
        if _is_folder(self._earlier) and not (self.out / RECORD).is_file():
            with store.naming(self.out, 0):
                os.rename(self._earlier, self.out)
            store.fsync_folder(self.out.parent)
        for folder in (self._earlier, self.new):
            _remove(folder)
            if os.path.lexists(folder):
                raise ValueError(f"{folder} holds what no export wrote; move it away and run the same command again.")


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Replacing]:
    """Replace a folder: at the end `out` is the earlier one or the new one, and the hidden folder is gone."""
    work = Replacing(out)
    if work.hidden.is_symlink():
        raise ValueError(f"{work.hidden} is a link, which is refused: an export writes there. Remove it.")
    with store.naming(work.hidden, 0):
        work.hidden.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(store.locked(work.hidden))
            except FileNotFoundError:
                raise ValueError(f"Another export to {out} has just ended; run the same command again.") from None
            work.tidy()
            try:
                yield work
            finally:
                work.tidy()
    finally:
        with contextlib.suppress(OSError):
            work.hidden.rmdir()


def _remove(folder: Path) -> None:
    """Remove an export's files from a folder, and the folder if it is then empty; links are not followed."""
    if not _is_folder(folder):
        return
    for name in list(_entries(folder)):
        if FILES.fullmatch(name) and not (folder / name).is_symlink():
            (folder / name).unlink(missing_ok=True)
    for inner in (*FOLDERS, ""):
        with contextlib.suppress(OSError):
            (folder / inner).rmdir()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
