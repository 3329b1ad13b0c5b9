"""Writers that are killed, and file systems that fail, at every single call: nothing is lost, nothing is half there."""

import errno
import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.weightspace.system_calls import break_calls, write_rest
from tests.weightspace.test_store import HEAD, content, contents
from weightspace import store
from weightspace.store import NotWritten, durable, finish, lock, open_zoo, verify, write_shard

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def promised(tmp_path_factory):
    path = tmp_path_factory.mktemp("promised")
    write_rest(path)
    return contents(path)


def test_a_writer_killed_at_any_call_loses_nothing_and_the_next_ends_in_the_same_bytes(tmp_path):
    # In a process of its own, because it forks, which is safe only where there is one thread.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ARROW_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.weightspace.system_calls", str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    calls = ended.stdout.split()
    killed_at = Counter(calls)
    # A shard of four files, a table, a card, a manifest; all are written, flushed and renamed.
    assert killed_at["write"] == 6
    assert killed_at["fsync"] >= 13
    assert killed_at["rename"] == 1
    assert killed_at["replace"] == 3
    assert killed_at["write_table"] == 1
    # Also after a power cut: what is written is flushed before it is renamed, and then the folder is.
    for here, after in pairwise(name for name in calls if name not in ("open", "mkdir")):
        assert here == "fsync" or after == "fsync"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_call_that_fails_is_named_and_the_next_writer_ends_in_the_same_bytes(tmp_path, promised, number):
    messages = []
    for step in range(1000):
        path = tmp_path / str(step)
        path.mkdir()
        calls = 0

        def fault(name):
            nonlocal calls
            calls += 1
            if calls == step + 1:  # noqa: B023 - used within this turn
                raise OSError(number, os.strerror(number))

        messages.append(failing(path, fault))
        if calls <= step:
            break
        assert not list(path.glob(".staging/*/*"))
        if (path / "zoo.json").exists():
            assert verify(path) == []
        write_rest(path)
        assert contents(path) == promised
    named = [message for message in messages if message is not None]
    assert all(f"{tmp_path}/{step}" in message for step, message in enumerate(messages) if message is not None)
    assert all(os.strerror(number) in message and "run the same command again" in message for message in named)
    # A folder that is there already need not be made, so that may fail.
    assert len(named) > 30
    assert len(messages) - len(named) <= 4


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_folders_is_said_once_and_used(tmp_path, promised, monkeypatch, caplog, number):
    flushed = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        flushed(handle)

    durable._warn_not_flushed.cache_clear()
    monkeypatch.setattr(os, "fsync", fsync)
    write_rest(tmp_path)
    assert contents(tmp_path) == promised
    assert verify(tmp_path) == []
    (line,) = [record.getMessage() for record in caplog.records]
    assert "cannot flush folders" in line
    assert os.strerror(number) in line


READ = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
from pathlib import Path
from weightspace.store import open_zoo, verify
import zoo_builder.cli
zoo = open_zoo(sys.argv[1])
assert zoo.table.num_rows == 5 and len(zoo.stack(range(5))) == 5 and zoo.rollouts([0])
assert verify(Path(sys.argv[1])) == []
assert zoo_builder.cli.main(["info", sys.argv[1]]) == zoo_builder.cli.main(["verify", sys.argv[1]]) == 0
"""


def test_what_only_reads_works_where_there_is_no_fcntl(tmp_path):
    write_rest(tmp_path)
    command = [sys.executable, "-c", READ, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_where_there_is_no_fcntl_a_builder_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "fcntl", None)
    with store.locked(tmp_path) as held:
        assert not held.try_alone()
    assert "has no locks (this system has none): run no two whole builds at once" in caplog.text


def failing(path, fault):
    """What a writer says when it meets a fault, None if it met none."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            break_calls(patch, fault)
            write_rest(path)
    except NotWritten as error:
        return str(error)
    return None


def test_a_folder_that_may_not_be_written_to_is_named(promised):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(NotWritten, match=r"could not be written \(Permission denied\)") as caught:
                write_shard(Path(folder), 0, content(), "p")
        finally:
            os.seteuid(user)
        assert folder in str(caught.value)
        os.chmod(folder, 0o755)
        write_rest(Path(folder))
        assert contents(Path(folder)) == promised


def test_a_process_with_too_many_open_files_is_told_so(tmp_path, promised):
    write_rest(tmp_path)
    held = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        with pytest.raises(NotWritten, match="Too many open files"):
            write_shard(tmp_path, 2, content(seed=2), "p")
        with pytest.raises((OSError, ValueError), match=r"[Tt]oo many open files|cannot be read"):
            open_zoo(tmp_path).stack([0])
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert contents(tmp_path) == promised
    assert open_zoo(tmp_path).stack([0])


def test_who_reads_while_shards_are_replaced_gets_what_was_promised_or_is_told(tmp_path):
    for index in range(2):
        write_shard(tmp_path, index, content(seed=index), "p")
    finish(tmp_path, HEAD, 2, "A test zoo")
    promised = contents(tmp_path)
    expected = torch.cat([content(seed=index).params["weight_hh.0"] for index in range(2)])
    stop, told, seen, problems = threading.Event(), Counter(), Counter(), []

    def read():
        # Pages of a file that was cut short under a reader would end this process with SIGBUS.
        while not stop.is_set():
            for first in (0, 5):
                try:
                    stack = open_zoo(tmp_path).stack(range(first, first + 5))
                    if not torch.equal(stack.params["weight_hh.0"], expected[first : first + 5]):
                        problems.append(first)
                    seen[first] += 1
                except ValueError as error:
                    told[str(error).partition(".safetensors ")[2][:10]] += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(30):
            store.remove_shard(tmp_path, turn % 2)
            write_shard(tmp_path, turn % 2, content(seed=turn % 2), "p")
    finally:
        stop.set()
        reader.join()
    assert problems == []
    assert min(seen[0], seen[5]) > 5
    assert set(told) <= {"is missing", "cannot be "}
    store.empty_staging(tmp_path)
    assert contents(tmp_path) == promised


def test_a_zoo_has_at_least_one_shard(tmp_path):
    with pytest.raises(ValueError, match="would have no shards"):
        finish(tmp_path, HEAD, 0, "t")
    assert contents(tmp_path) == {}
