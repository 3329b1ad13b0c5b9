"""Checking every promised byte of a zoo against its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.store.layout import MANIFEST, SHARDS, file_entry
from weightspace.store.manifest import read_manifest


@dataclass(frozen=True)
class Fault:
    """One thing that is not as promised: a path inside the zoo, and what is wrong with it."""

    path: str
    problem: str


def verify(zoo: Path, progress: Callable[[str], None] | None = None) -> list[Fault]:
    """Every fault of a zoo, in the order of its files; `progress` is told each shard's name before it is read."""
    if not zoo.is_dir():
        raise ValueError(f"{zoo} is not a folder; give the folder that `zoo-builder build --out` made.")
    try:
        manifest = read_manifest(zoo)
    except ValueError as error:
        return [Fault(MANIFEST, str(error))]
    return list(_faults(zoo, manifest, progress))


def _faults(zoo: Path, manifest: Mapping[str, Any], progress: Callable[[str], None] | None) -> Iterator[Fault]:
    for name, entry in manifest["files"].items():
        yield from _file_faults(zoo, name, entry)
    names = set()
    for shard in manifest["shards"]:
        if progress is not None:
            progress(shard["name"])
        folder = f"{SHARDS}/{shard['name']}"
        names.add(shard["name"])
        if not (zoo / folder).is_dir():
            yield Fault(folder, "the shard is missing")
            continue
        for name, entry in shard["files"].items():
            yield from _file_faults(zoo, f"{folder}/{name}", entry)
        for extra in sorted(path.name for path in (zoo / folder).iterdir() if path.name not in shard["files"]):
            yield Fault(f"{folder}/{extra!s}", f"is not in {MANIFEST}")
    if (zoo / SHARDS).is_dir():
        for extra in sorted(path.name for path in (zoo / SHARDS).iterdir() if path.name not in names):
            yield Fault(f"{SHARDS}/{extra}", f"is not in {MANIFEST}")


def _file_faults(zoo: Path, name: str, expected: Mapping[str, Any]) -> Iterator[Fault]:
    path = zoo / name
    if not path.is_file():
        yield Fault(name, "is missing")
    elif not path.resolve().is_relative_to(zoo.resolve()):
        yield Fault(name, "is a link out of the zoo")
    else:
        found = file_entry(path)
        if found["bytes"] != expected["bytes"]:
            yield Fault(name, f"has {found['bytes']} bytes, expected {expected['bytes']}")
        elif found["sha256"] != expected["sha256"]:
            yield Fault(name, f"has sha256 {found['sha256'][:12]}..., expected {expected['sha256'][:12]}...")
