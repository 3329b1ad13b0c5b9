"""User packages whose classes files may name: those installed as plug-ins, and those enabled by `--allow_import`.

A distribution is a plug-in by an entry point of the group `weightspace.packages` that names its package. No file of a
zoo, recipe or checkpoint can enable a package.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

OPTION = "--allow_import"
GROUP = "weightspace.packages"
HELP = (
    f"{OPTION} PKG (repeatable, on every command) lets configs, recipes, zoos and checkpoints name classes of PKG, a "
    "package of your own that Python finds; its code runs."
)

_allowed: dict[str, None] = {}


def allow(*packages: str) -> None:
    """Enable these packages for the rest of the process; ValueError if Python does not find one."""
    for package in packages:
        if not all(part.isidentifier() for part in package.split(".")) or not _is_importable(package):
            raise ValueError(
                f"Python finds no package '{package}', which {OPTION} names; install it, or put the folder that it "
                "lies in on PYTHONPATH."
            )
        _allowed[package] = None


def allowed() -> tuple[str, ...]:
    """The packages of installed plug-ins, then those enabled by the option, in their order."""
    return tuple(dict.fromkeys([*installed(), *_allowed]))


@cache
def installed() -> tuple[str, ...]:
    """Packages of plug-ins that are installed, sorted by name: whoever installs one trusts its code."""
    return tuple(sorted({point.module for point in importlib.metadata.entry_points(group=GROUP)}))


def covers(path: str) -> bool:
    """Whether a dotted path is in an enabled package."""
    return any(path == package or path.startswith(f"{package}.") for package in allowed())


def take_option(argv: Sequence[str]) -> list[str]:
    """The arguments without `--allow_import PKG[,PKG]`, whose packages are enabled.

    The option is removed before configs are parsed: no config can set it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=HELP)
    parser.add_argument(OPTION, action="append", default=[])
    options, remaining = parser.parse_known_args(list(argv))
    allow(*(package for value in options.allow_import for package in value.split(",")))
    return remaining


def way_out(path: str) -> str:
    """The sentence of an error message that explains how to enable a refused dotted path."""
    return f"If it is code of your own that you trust to run, add `{OPTION} {path.partition('.')[0]}`."


def modules() -> list[ModuleType]:
    """The enabled packages and the modules directly in them, imported."""
    imported = []
    for name in allowed():
        package = importlib.import_module(name)
        imported += [package, *modules_in(package)]
    return imported


def modules_in(package: ModuleType) -> list[ModuleType]:
    """The modules directly in a package, imported, sorted by name; none in a plain module."""
    names = sorted(item.name for item in pkgutil.iter_modules(getattr(package, "__path__", [])))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def digests(kinds: Iterable[type]) -> dict[str, str]:
    """sha256 (hex) of the Python files of each enabled package that defines one of these classes, by package name."""
    tops = {kind.__module__.partition(".")[0] for kind in kinds if covers(kind.__module__)}
    return {top: _digest(importlib.import_module(top)) for top in sorted(tops)}


def _digest(package: ModuleType) -> str:
    root = Path(str(package.__file__))
    files = sorted(root.parent.rglob("*.py")) if hasattr(package, "__path__") else [root]
    entries = [f"{file.relative_to(root.parent)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def _is_importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
