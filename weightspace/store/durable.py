"""Atomic and durable files: written to a temporary name, flushed to the disk, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType

from weightspace.store.inside import refuse_links

logger = logging.getLogger(__name__)

STAGING, LOCK, PLAN, JOURNAL, TABLES = ".staging", "lock", "plan.json", "labelling.json", "tables-"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_FLUSHED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_WRITER = r"[^/]+-[0-9]+-([0-9]+|dead)"
_MADE = re.compile(rf"{_WRITER}|{TABLES}\w+|{PLAN}|{JOURNAL}|\.({PLAN}|{JOURNAL})\.{_WRITER}-[0-9]+")
"""Names of everything that writers create in the staging folder, except the lock."""


class NotWritten(OSError):
    """A file could not be written; the message names it, the reason and the way out."""

    def __str__(self) -> str:
        return str(self.strerror)


class DiskFull(NotWritten):
    """There is no room for a file; the message names it and the bytes it needs."""


@contextlib.contextmanager
def naming(path: Path, num_bytes: int) -> Iterator[None]:
    """Turn an OSError while writing `path` into an error that names the path and the way out."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            text = f"No room for {path}, which needs {num_bytes:,} bytes ({reason}). Free some space"
            raise DiskFull(error.errno, f"{text} and run the same command again; what is finished is kept.") from error
        text = f"{path} could not be written ({reason}). Fix that"
        raise NotWritten(error.errno, f"{text} and run the same command again; what is finished is kept.") from error


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder durable, where the file system can."""
    with naming(folder, 0):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NOT_FLUSHED:
                raise
            _warn_not_flushed(os.strerror(error.errno))
        finally:
            os.close(handle)


@cache
def _warn_not_flushed(reason: str) -> None:
    # Cached, so logged once in a process: it holds for every folder.
    logger.warning(
        "The file system cannot flush folders (%s): after a power cut the last files may be missing; "
        "the same command makes them again.",
        reason,
    )


def flush(path: Path) -> None:
    """Flush a file that another library wrote to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_flushed(path: Path, data: bytes) -> None:
    """Write a file, replacing an old one, and flush it to the disk; its mode follows the umask."""
    with naming(path, len(data)):
        # A link of this name is removed, not followed.
        path.unlink(missing_ok=True)
    with naming(path, len(data)), path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def publish(staged: Path, target: Path) -> None:
    """Rename a flushed file into place, replacing what was there, and make the rename durable."""
    with naming(target, 0):
        os.replace(staged, target)
    fsync_folder(target.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write one file atomically: readers see the old content or the new one, also after a power cut."""
    # Builders on other machines may have the same process id, so the name includes the machine.
    temporary = path.with_name(f".{path.name}.{_writer_name(os.getpid())}-{threading.get_native_id()}")
    try:
        write_flushed(temporary, data)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Staging:
    """A temporary folder of one writer inside the zoo, on the same file system, removed when the writer ends."""

    def __init__(self, zoo: Path) -> None:
        self.path = zoo / STAGING / _writer_name(os.getpid())

    def __enter__(self) -> Path:
        refuse_links(self.path.parents[1], f"{STAGING}/{self.path.name}")
        with naming(self.path, 0):
            self.path.mkdir(parents=True, exist_ok=True)
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def clean_staging(zoo: Path) -> None:
    """Remove the folders of dead writers of this machine; those of live ones and of other machines stay."""
    staging = zoo / STAGING
    if staging.is_symlink() or not staging.is_dir():
        return
    for folder in staging.iterdir():
        host, _, pid = folder.name.rpartition("-")[0].rpartition("-")
        if host == _host() and pid.isdigit() and folder.name != _writer_name(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def empty_staging(zoo: Path) -> None:
    """Remove all files of writers after a finished build, except the lock, which its holder removes last."""
    staging = zoo / STAGING
    if staging.is_symlink() or not staging.is_dir():
        return
    for path in filter(lambda path: _MADE.fullmatch(path.name), staging.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        staging.rmdir()


def _writer_name(pid: int) -> str:
    """HOST-PID-START, where START (clock ticks since boot) distinguishes processes that had the same pid."""
    try:
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        start = "0" if _alive(pid) else "dead"
    return f"{_host()}-{pid}-{start}"


def _host() -> str:
    """Name of this machine and its pid namespace: containers may share the machine's name, but not process ids."""
    try:
        space = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        space = "0"
    return f"{socket.gethostname()}.{space}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
