"""Cache of compiled libraries: named by their sources, loaded only if unchanged since they were written."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE = "WEIGHTSPACE_CACHE"


class NoNative(RuntimeError):
    """Absence of the engine on this machine; the message gives the reason."""


class _Unfit(Exception):
    """Refusal of a folder that can hold no library, or of a library that cannot be trusted, with the reason."""


def library(key: str, make: Callable[[Path], None]) -> ctypes.CDLL:
    """The library of this key: kept, or made by `make`, which writes it to a path; NoNative if no folder will do.

    A library is called KEY-DIGEST.so with the digest of its bytes: one that was cut short or changed does not fit its
    name, and is made anew.
    """
    reasons: list[str] = []
    for named in (_asked, _temporary):
        try:
            folder = _prepared(named())
            found = _kept(folder, key) or _compiled(folder, key, make)
        except (OSError, _Unfit) as error:
            reasons.append(str(error))
            continue
        if reasons:
            logger.warning("Compiled engines are kept in %s: %s.", folder, reasons[0])
            # Child processes use that folder at once, without another warning.
            os.environ[VARIABLE] = str(folder)
        return found
    raise NoNative(f"no compiled engine can be kept and loaded ({'; '.join(reasons)}); {VARIABLE} names another folder")


def _asked() -> Path:
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).absolute()
    try:
        return (Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weightspace").absolute()
    except RuntimeError:
        raise _Unfit("this user has no home folder, neither HOME nor an entry in the list of users") from None


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"weightspace-{os.getuid()}"


def _prepared(folder: Path) -> Path:
    """Folder, made if need be; _Unfit unless this user alone can write there and files there can be executed."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status, system = folder.stat(), os.statvfs(folder)
    except OSError as error:
        raise _Unfit(f"{folder} cannot be used ({error.strerror})") from None
    _refuse_others(folder, status)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise _Unfit(f"nothing can be written to {folder}")
    if system.f_flag & getattr(os, "ST_NOEXEC", 0):
        raise _Unfit(f"{folder} lies on a file system where nothing can be executed (noexec)")
    return folder


def _refuse_others(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise _Unfit(f"others than this user can write to {path}")


def _kept(folder: Path, key: str) -> ctypes.CDLL | None:
    """Library in a folder; files that do not fit their names are removed."""
    for file in sorted(folder.glob(f"{key}-*.so")):
        with contextlib.suppress(_Unfit):
            return _loaded(file, file.stem.partition("-")[2])
        file.unlink(missing_ok=True)
    return None


def _compiled(folder: Path, key: str, make: Callable[[Path], None]) -> ctypes.CDLL:
    """New library, written aside, tested by loading, and renamed into place: other processes may do the same."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as aside:
        path = Path(aside) / "made.so"
        make(path)
        path.chmod(0o700)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        loaded = _loaded(path, digest)
        os.replace(path, folder / f"{key}-{digest}.so")
    return loaded


def _loaded(path: Path, digest: str) -> ctypes.CDLL:
    """Library of a file that belongs to this user alone and has this digest, else _Unfit."""
    try:
        # Links are not followed, and pipes not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _Unfit(f"{path} cannot be read ({error.strerror})") from None
    try:
        status = os.fstat(descriptor)
        _refuse_others(path, status)
        with open(descriptor, "rb", closefd=False) as file:
            if not stat.S_ISREG(status.st_mode) or hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise _Unfit(f"{path} is not what was written there")
        # The checked file is the one that is loaded, even if its name is taken by another.
        same = Path(f"/proc/self/fd/{descriptor}")
        library = ctypes.CDLL(str(same if same.exists() else path))
    except (OSError, _Unfit):
        os.close(descriptor)
        raise
    # The descriptor stays open: the loader takes two files of one name, and so of one number, for the same library.
    return library
