"""Compiling the engine on first use with the system's C compiler, and keeping what was compiled by its content."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

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
TIMEOUT = 300


class NoNative(RuntimeError):
    """The engine cannot be had on this machine; the message says why."""


@functools.cache
def library(source: str, *defines: str) -> ctypes.CDLL:
    """A C file, compiled with macros such as `LANES=16`; NoNative with the reason if that fails.

    A name without a folder is that of a file beside this one. What a file includes lies beside it.
    """
    path = _cached(Path(__file__).parent / source, defines)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoNative(f"the compiled engine does not load ({error})") from error


def compiler() -> list[str]:
    """The command of the C compiler: the environment's CC, else cc, gcc or clang."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise NoNative("no C compiler was found (looked for CC in the environment, cc, gcc and clang)")


def cache() -> Path:
    """Where compiled engines are kept: WEIGHTSPACE_CACHE, else the user's cache folder."""
    if os.environ.get("WEIGHTSPACE_CACHE"):
        return Path(os.environ["WEIGHTSPACE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weightspace"


def version() -> str:
    """What the C compiler says of itself in its first line."""
    return (_version(tuple(compiler())).splitlines() or ["unknown"])[0]


def _cached(source: Path, defines: tuple[str, ...]) -> Path:
    command = [*compiler(), *FLAGS, *(f"-D{one}" for one in defines)]
    content = b"\0".join(path.read_bytes() for path in (source, *sorted(source.parent.glob("*.[ch]"))))
    machine = "\0".join([*command, _version(tuple(compiler())), platform.machine(), _processor()])
    name = hashlib.sha256(content + machine.encode()).hexdigest()[:32] + ".so"
    for folder in (cache(), Path(tempfile.gettempdir()) / f"weightspace-{os.getuid()}"):
        if (folder / name).exists() and _is_own(folder):
            return folder / name
    for folder in (cache(), Path(tempfile.gettempdir()) / f"weightspace-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                if not _is_own(folder):
                    continue
                made = Path(aside) / name
                _compile([*command, str(source), "-o", str(made), "-lm"])
                os.replace(made, folder / name)
                return folder / name
        except OSError:
            # A read-only or full cache: the next folder may do.
            continue
    raise NoNative(f"nothing can be written to the cache {cache()} nor to the temporary folder")


def _is_own(folder: Path) -> bool:
    """Whether nobody else could have put a library there."""
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired) as error:
        raise NoNative(f"the C compiler could not be run ({error})") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
        raise NoNative(f"the C compiler failed: {reason}")


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    try:
        return subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=TIMEOUT).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoNative(f"the C compiler could not be run ({error})") from error


@functools.cache
def _processor() -> str:
    """What the processor can do, so that a cache on a shared disk does not serve another kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
