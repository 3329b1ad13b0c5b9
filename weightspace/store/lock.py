"""Who may work on a zoo folder at the same time, also from several machines on one file system.

The lock is an advisory `flock` on `.staging/lock`: network file systems carry it to the other machines, and it goes
with the process that holds it. No byte depends on it, since shards are put into place by one rename and builders of one
plan write the same; it keeps a builder from tidying up, merging or labelling while others are at work.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from weightspace.store.durable import JOURNAL, LOCK, PLAN, STAGING, NotWritten, naming
from weightspace.store.inside import refuse_links
from weightspace.store.layout import CARD, MANIFEST, SHARDS, TABLE

try:
    import fcntl
except ImportError:
    # Not POSIX: zoos can still be read there.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class Lock:
    """A hold on a zoo folder, alone or shared with others that hold it so."""

    def __init__(self, path: Path, shared: bool) -> None:
        self.path, self.shared, self._handle = path, shared, -1

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it against us."""
        if fcntl is None:
            raise NoLocks(errno.ENOSYS, "this system has none")
        try:
            with naming(self.path, 0):
                self.path.parent.mkdir(exist_ok=True)
                # Writable, because network file systems refuse an exclusive lock on a file opened for reading.
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except NotWritten as error:
            if error.errno != errno.ENOENT:
                raise
            # Whoever held it has tidied the folder away just now.
            return False
        if self._try(fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) and self._current():
            return True
        os.close(self._handle)
        self._handle = -1
        return False

    def try_alone(self) -> bool:
        """Turn a shared hold into one alone, if nobody else holds the folder; if not, this hold is over."""
        if not self._try(fcntl.LOCK_EX) or not self._current():
            return False
        self.shared = False
        return True

    def release(self) -> None:
        """Let go; who was alone tidies the lock away, and the staging folder if nothing else is in it."""
        try:
            if not self.shared:
                with contextlib.suppress(OSError):
                    self.path.unlink()
                    self.path.parent.rmdir()
        finally:
            os.close(self._handle)

    def _try(self, mode: int) -> bool:
        try:
            fcntl.flock(self._handle, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            os.close(self._handle)
            if error.errno not in _NO_LOCKS:
                raise
            raise NoLocks(error.errno, os.strerror(error.errno)) from None
        return True

    def _current(self) -> bool:
        """Whether the locked file is still the one at its path, not one that was tidied away."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        return False


class NoLocks(OSError):
    """The file system has no locks."""


class Unlocked(Lock):
    """Stands for the lock where the file system has none: nobody is kept off, so nobody is known to be alone."""

    def try_alone(self) -> bool:
        """Never alone for certain."""
        return False

    def release(self) -> None:
        """Nothing was held."""


@contextlib.contextmanager
def locked(zoo: Path, *, shared: bool = False, patience: float = 5.0) -> Iterator[Lock]:
    """Hold a zoo folder, alone or shared with others that hold it shared; waits up to `patience` seconds for it.

    Raises ValueError if others keep it, or if a link is where its holder would write. Where the file system has no
    locks, says so once and goes on without.
    """
    staged = (f"{STAGING}/{name}" for name in (LOCK, PLAN, JOURNAL))
    refuse_links(zoo, STAGING, *staged, SHARDS, MANIFEST, TABLE, CARD)
    lock = _acquired(zoo, Lock(zoo / STAGING / LOCK, shared), patience)
    try:
        yield lock
    finally:
        lock.release()


def _acquired(zoo: Path, lock: Lock, patience: float) -> Lock:
    deadline = time.monotonic() + patience
    try:
        while not lock.try_acquire():
            if time.monotonic() > deadline:
                raise ValueError(f"Another builder is at work on {zoo}; wait for it or stop it.")
            time.sleep(0.1)
    except NoLocks as error:
        lock.path.unlink(missing_ok=True)
        logger.warning("The file system of %s has no locks (%s): run no two whole builds at once.", zoo, error.strerror)
        return Unlocked(lock.path, lock.shared)
    return lock
