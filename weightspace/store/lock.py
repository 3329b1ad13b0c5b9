"""Locks of a zoo folder, shared or exclusive, also between machines on one file system.

The lock is an advisory `flock` on `.staging/lock`: network file systems pass it on to other machines, and the system
releases it when its process ends. No byte depends on it, since a shard appears by one rename and builders of one plan
write the same bytes; it keeps a builder from cleaning up, merging or labelling while others work.
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
    # Systems without POSIX locks can still read zoos.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class Lock:
    """A lock of a zoo folder: shared, or exclusive."""

    def __init__(self, path: Path, shared: bool) -> None:
        self.path, self.shared, self._handle = path, shared, -1

    def try_acquire(self) -> bool:
        """Take the lock if no other holder excludes it; returns whether it was taken."""
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
            # The last holder removed the folder in between.
            return False
        if self._try(fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) and self._current():
            return True
        os.close(self._handle)
        self._handle = -1
        return False

    def try_alone(self) -> bool:
        """Turn a shared lock into an exclusive one if there is no other holder; if there is, this lock is lost."""
        if not self._try(fcntl.LOCK_EX) or not self._current():
            return False
        self.shared = False
        return True

    def release(self) -> None:
        """Release the lock; an exclusive holder also removes its file, and the staging folder if that is empty."""
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
        """Whether the locked file is still at its path, and not one that was removed."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        return False


class NoLocks(OSError):
    """The file system has no locks."""


class Unlocked(Lock):
    """The lock of a file system without locks: it excludes nobody, and is never known to be exclusive."""

    def try_alone(self) -> bool:
        """False: other holders are not known."""
        return False

    def release(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def locked(zoo: Path, *, shared: bool = False, patience: float = 5.0) -> Iterator[Lock]:
    """Lock a zoo folder, exclusively or `shared`; waits up to `patience` seconds for it.

    Raises ValueError if others keep it, or if a path that its holder would write to is a link. On a file system without
    locks it logs a warning and continues.
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
