"""A file system that fails, or a process that dies, at the k-th thing a writer asks of it."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.weightspace.test_store import HEAD, content, contents
from weightspace.store import clean_staging, finish, good_shards, verify, write_shard

SHARDS = 1


class Writes:
    """A file whose write at a fault has put half of its bytes on the disk."""

    def __init__(self, file: io.BufferedWriter, fault: Callable[[str], None]) -> None:
        self.file, self.fault = file, fault

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.fault("write")
        return self.file.write(data[len(data) // 2 :])

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def __enter__(self) -> Writes:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def break_calls(patch: pytest.MonkeyPatch, fault: Callable[[str], None]) -> None:
    """Call `fault` before every durable call of this process, and in the middle of every write."""

    def counted(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: object, **options: object) -> object:
            fault(name)
            return real(*arguments, **options)

        patch.setattr(module, name, call)

    for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (os, "open")):
        counted(module, name)
    real_write = pq.ParquetWriter.write_table

    def write_table(self: pq.ParquetWriter, *arguments: object, **options: object) -> None:
        # Without a handle of its own it writes into memory.
        if self.file_handle is not None:
            fault("write_table")
        real_write(self, *arguments, **options)

    patch.setattr(pq.ParquetWriter, "write_table", write_table)
    real_open = Path.open

    def opened(self: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        file = real_open(self, mode, *arguments, **options)
        return Writes(file, fault) if "x" in mode else file

    patch.setattr(Path, "open", opened)


def write_rest(path: Path) -> None:
    """Go on with a zoo of one shard from wherever it was left."""
    clean_staging(path)
    good, bad = good_shards(path, range(SHARDS), "p")
    assert not bad, bad
    for index in sorted(set(range(SHARDS)) - set(good)):
        write_shard(path, index, content(seed=index), "p")
    finish(path, HEAD, SHARDS, "A test zoo")


def die_everywhere(folder: Path) -> list[str]:
    """Kill a writer at its first durable call, then another at its second, ...; the calls that it was killed at.

    Each is a process of its own, killed by SIGKILL, so nothing tidies up after it. Asserts that what it leaves says
    that it is unfinished, or is whole, and that the next writer ends in the bytes of one that was let alone.
    """
    unbroken = folder / "unbroken"
    unbroken.mkdir()
    write_rest(unbroken)
    promised, killed_at = contents(unbroken), []
    while True:
        path = folder / str(len(killed_at))
        path.mkdir()
        killed = _die(path, len(killed_at), folder / "last")
        if (path / "zoo.json").exists():
            assert verify(path) == []
        write_rest(path)
        assert contents(path) == promised, killed_at
        shutil.rmtree(path)
        if not killed:
            return killed_at
        killed_at.append((folder / "last").read_text())


def _die(path: Path, last: int, note: Path) -> bool:
    """Let a child write the zoo until its `last`th durable call; whether it got as far."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    calls = 0

    def fault(name: str) -> None:
        nonlocal calls
        if calls == last:
            calls += 1
            note.write_text(name)
            os.kill(os.getpid(), 9)
        calls += 1

    with pytest.MonkeyPatch.context() as patch:
        break_calls(patch, fault)
        write_rest(path)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(" ".join(die_everywhere(Path(sys.argv[1]))))
