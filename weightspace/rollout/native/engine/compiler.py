"""Compilation of the engine on first use with the system's C compiler."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from weightspace.rollout.native.engine import cache
from weightspace.rollout.native.engine.cache import NoNative

__all__ = ["NoNative", "compiler", "library", "version"]

FLAGS = (
    "-O3",
    "-funroll-loops",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-std=gnu11",
    "-fPIC",
    "-shared",
)
COMPILATION, ANSWER = 300, 30
"""Seconds after which a compiler is given up, for a compilation or its version."""


@functools.cache
def library(source: str, *defines: str) -> ctypes.CDLL:
    """A C file, compiled with macros such as `LANES=16`; NoNative with the reason if that fails.

    A name without a folder is that of a file of the engine. What a file includes lies beside it or beside those.
    """
    folder = Path(__file__).parent.parent / "c"
    path = folder / source
    command = [*compiler(), *FLAGS, *(f"-D{macro}" for macro in defines)]
    included = sorted({*path.parent.glob("*.[ch]"), *folder.glob("*.[ch]")})
    content = b"\0".join(file.read_bytes() for file in (path, *included))
    machine = "\0".join([*command, _version(tuple(compiler())), platform.machine(), _processor()])
    key = hashlib.sha256(content + machine.encode(errors="replace")).hexdigest()[:32]
    return cache.library(key, lambda made: _compile([*command, f"-I{folder}", str(path), "-o", str(made), "-lm"], made))


def compiler() -> list[str]:
    """The command of the C compiler: the environment's CC, else cc, gcc or clang."""
    asked = os.environ.get("CC", "").strip()
    if asked:
        try:
            return [asked] if shutil.which(asked) else shlex.split(asked)
        except ValueError as error:
            raise NoNative(f"CC in the environment is {asked!r}, which is no command ({error})") from None
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise NoNative("no C compiler was found (looked for CC in the environment, cc, gcc and clang)")


def version() -> str:
    """First line of the C compiler's version text."""
    return (_version(tuple(compiler())).splitlines() or ["unknown"])[0]


def _compile(command: list[str], made: Path) -> None:
    done = _run(command, COMPILATION)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
        raise NoNative(f"the C compiler failed: {reason}")
    if not made.is_file():
        raise NoNative(f"the C compiler {command[0]} said that it was done, but left no library")


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    return _run([*command, "--version"], ANSWER).stdout


def _run(command: list[str], seconds: int) -> subprocess.CompletedProcess[str]:
    # Output may be no text; without input, a compiler that reads stdin ends.
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "errors": "replace"}
    try:
        return subprocess.run(command, timeout=seconds, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoNative(f"the C compiler could not be run ({error})") from error


@functools.cache
def _processor() -> str:
    """Features of the processor: a cache on a shared disk must not serve another kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
