"""The cache of compiled libraries: what is loaded from it, what is not, and what happens where there is none."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import pytest

from weightspace.rollout.native.engine import cache, compiler
from weightspace.rollout.native.engine.compiler import NoNative

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine on which nothing was compiled yet; its cache is `cache`, its temporary folder lies beside that."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "answer.c").write_text(SOURCE)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    forget()
    yield tmp_path
    forget()


def forget():
    compiler.library.cache_clear()
    compiler._version.cache_clear()


def answer(folder):
    """What a library says that is compiled as for the first time in a process."""
    forget()
    return compiler.library(str(folder / "answer.c")).answer()


def in_processes(work, count):
    """What `work` returns, a small number, in so many processes at once; negative where a signal ended one."""
    processes = [multiprocessing.get_context("fork").Process(target=lambda: os._exit(work())) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def kept(folder):
    return sorted(folder.rglob("*.so"))


def the_compiler_is(folder, monkeypatch, text):
    """A compiler that is a script; its last argument but one is what to write."""
    script = folder / "my cc"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))


def test_a_library_is_compiled_once_and_is_its_owners_alone(machine, monkeypatch):
    before = os.umask(0)
    try:
        assert answer(machine) == 42
    finally:
        os.umask(before)
    (file,) = kept(machine / "cache")
    assert file.stat().st_mode & 0o777 == 0o700
    assert (machine / "cache").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(compiler, "_compile", None)
    assert answer(machine) == 42
    assert list((machine / "cache").iterdir()) == [file]


@pytest.mark.parametrize("damage", ["cut short", "empty", "changed", "written by others", "a link", "a pipe"])
def test_a_library_that_is_not_what_was_written_is_made_anew(machine, damage):
    answer(machine)
    (file,) = kept(machine / "cache")
    content = file.read_bytes()
    if damage == "written by others":
        file.chmod(0o777)
    else:
        # Not written over: this process runs it.
        file.unlink()
        if damage == "a link":
            (machine / "elsewhere").write_bytes(content)
            (machine / "elsewhere").chmod(0o700)
            file.symlink_to(machine / "elsewhere")
        elif damage == "a pipe":
            os.mkfifo(file, 0o700)
        else:
            changed = content[:-1] + bytes([content[-1] ^ 1])
            file.write_bytes({"cut short": content[:4096], "empty": b"", "changed": changed}[damage])
            file.chmod(0o700)
    assert answer(machine) == 42
    (file,) = kept(machine / "cache")
    assert file.read_bytes() == content
    assert file.is_file()
    assert not file.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o700


def test_a_process_survives_a_cached_library_that_was_cut_short(machine):
    answer(machine)
    (file,) = kept(machine / "cache")
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:4096])
    file.chmod(0o700)
    assert in_processes(lambda: answer(machine), 1) == [42]


def pretended_noexec(path):
    """What the system says of a folder, with all but the temporary one on a file system that executes nothing."""
    found = STATVFS(path)
    flags = found.f_flag if "tmp/weightspace-" in str(path) else found.f_flag | os.ST_NOEXEC
    return os.statvfs_result((*tuple(found)[:8], flags, found.f_namemax))


STATVFS = os.statvfs


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("others could write", "others than this user can write to"),
        ("of somebody else", "others than this user can write to"),
        ("a file in its place", "cannot be used (Not a directory)"),
        ("noexec", "(noexec)"),
        ("does not load", "not permitted"),
        ("no home", "this user has no home folder"),
        ("denied", "cannot be used (Permission denied)"),
    ],
)
def test_where_the_cache_cannot_be_used_one_line_says_so_and_the_temporary_folder_is(
    trouble, words, machine, monkeypatch, caplog
):
    folder = machine / "cache"
    if trouble == "others could write":
        folder.mkdir()
        folder.chmod(0o777)
    elif trouble == "of somebody else":
        monkeypatch.setattr(cache.os, "getuid", lambda: os.geteuid() + 1 if cache_is_asked(folder) else os.geteuid())
    elif trouble == "a file in its place":
        folder.write_text("")
        monkeypatch.setenv("WEIGHTSPACE_CACHE", str(folder / "below"))
    elif trouble == "noexec":
        monkeypatch.setattr(os, "statvfs", pretended_noexec)
    elif trouble == "does not load":
        monkeypatch.setattr(cache, "_loaded", refusing(folder))
    elif trouble == "no home":
        monkeypatch.setenv("WEIGHTSPACE_CACHE", "")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setattr(Path, "mkdir", denied(folder))
    assert answer(machine) == 42
    assert answer(machine) == 42
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Compiled engines are kept in {machine / 'tmp' / 'weightspace-'}")
    assert words in line
    assert "Errno" not in line
    assert len(kept(machine / "tmp")) == 1
    assert not kept(folder)
    # What this process starts is told where to look, so that it need not say the same again.
    assert os.environ["WEIGHTSPACE_CACHE"].startswith(str(machine / "tmp"))


def cache_is_asked(folder):
    return os.environ["WEIGHTSPACE_CACHE"] == str(folder) and sys._getframe(2).f_locals.get("path") == folder


def refusing(folder):
    load = cache._loaded

    def loaded(path, digest):
        if path.is_relative_to(folder):
            raise OSError("failed to map segment from shared object: Operation not permitted")
        return load(path, digest)

    return loaded


def denied(folder):
    mkdir = Path.mkdir

    def make(path, *args, **options):
        if path == folder:
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *args, **options)

    return make


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_where_nothing_can_be_kept_one_line_says_why(machine, monkeypatch):
    (machine / "file").write_text("")
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(machine / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(machine / "file"))
    with pytest.raises(NoNative, match=r"loaded \(.*Not a directory.*Not a directory.*WEIGHTSPACE_CACHE names"):
        answer(machine)


def test_many_processes_that_compile_at_once_all_get_their_library(machine):
    assert in_processes(lambda: answer(machine), 8) == [42] * 8
    assert len(list((machine / "cache").iterdir())) == 1


def test_the_environment_s_compiler_may_have_options_or_blanks_in_its_name(machine, monkeypatch):
    the_compiler_is(machine, monkeypatch, 'exec cc "$@"')
    assert answer(machine) == 42
    monkeypatch.setenv("CC", "  cc  -DUNUSED='a b'  ")
    assert compiler.compiler() == ["cc", "-DUNUSED=a b"]
    assert answer(machine) == 42
    monkeypatch.setenv("CC", "   ")
    assert len(compiler.compiler()) == 1
    assert answer(machine) == 42


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exit 3", "the C compiler failed: status 3"),
        ("printf '\\377\\376 no' >&2; exit 1", "the C compiler failed: .. no"),
        ("exit 0", "said that it was done, but left no library"),
        ("for last; do before=$made; made=$last; done; echo garbage > $before", "kept and loaded"),
        ("cat; exit 4", "the C compiler failed: status 4"),
        ("exec sleep 60", "could not be run .*timed out"),
    ],
)
def test_a_compiler_that_fails_is_one_line_whatever_it_does(text, words, machine, monkeypatch):
    monkeypatch.setattr(compiler, "ANSWER", 1 if "sleep" in text else 30)
    the_compiler_is(machine, monkeypatch, text)
    with pytest.raises(NoNative, match=words) as caught:
        answer(machine)
    assert "\n" not in str(caught.value)
    assert not kept(machine)


@pytest.mark.parametrize(("asked", "words"), [("gcc 'x", "which is no command"), ("/no/cc", "could not be run")])
def test_a_compiler_that_is_not_there_is_one_line(asked, words, machine, monkeypatch):
    monkeypatch.setenv("CC", asked)
    with pytest.raises(NoNative, match=words):
        answer(machine)
