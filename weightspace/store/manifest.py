"""zoo.json as it is read: whole, of a known format, unedited, and naming nothing outside the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weightspace.store.layout import (
    CARD,
    FORMAT,
    KEY,
    MANIFEST,
    PARAMS,
    ROLLOUTS,
    SHARD_MANIFEST,
    SHARD_NAME,
    SHARD_TABLE,
    TABLE,
    sealed,
)

SHARD_FILES = {PARAMS, SHARD_TABLE, SHARD_MANIFEST}
LARGEST_SIZE = 100_000
"""No axis of a model is longer, and no model has more layers; a zoo that says so would only fill the memory."""


class DamagedManifest(ValueError):
    """zoo.json is there but not as it was written."""


def read_manifest(path: Path) -> dict[str, Any]:
    """zoo.json of a finished zoo, checked as far as it can be without reading the shards."""
    file = path / MANIFEST
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give the folder that `zoo-builder build --out` made.")
    if not file.is_file():
        raise ValueError(f"{path} has no {MANIFEST}: not a zoo, or unfinished (run the same build, or label, again).")
    way_out = " Run the same `zoo-builder build` again: it is made anew from the shards."
    try:
        manifest = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise DamagedManifest(f"{file} is not JSON.{way_out}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if type(found) is int and found > FORMAT:
        raise ValueError(f"{path} has format {found}, this version reads up to {FORMAT}; upgrade weightspace.")
    if type(found) is not int or found != FORMAT:
        raise DamagedManifest(f"{file} has format {found!r}, expected {FORMAT}.{way_out}")
    check_manifest(manifest, str(file), way_out)
    return manifest


def check_manifest(manifest: Any, file: str, way_out: str = "") -> None:
    """Raise DamagedManifest if a manifest was edited, ValueError if one that was not says what no writer says."""
    try:
        intact = sealed(manifest) == manifest
    except (ValueError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise DamagedManifest(f"{file} was edited: its digest is not that of its content.{way_out}")
    problem = next(_problems(manifest), None)
    if problem is not None:
        raise ValueError(f"{file} {problem}. Whoever made this zoo did not use `zoo-builder`; do not use it.")


def _problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a manifest, most basic first."""
    for name, kind in (("shards", list), ("files", dict), ("recipe", dict), ("labels", dict)):
        if not isinstance(manifest.get(name), kind):
            yield f"has no {kind.__name__} of `{name}`"
            return
    for name, label in manifest["labels"].items():
        if (
            not KEY.fullmatch(name)
            or not isinstance(label, dict)
            or not all(isinstance(label.get(key), str) for key in ("unit", "definition"))
        ):
            yield f"does not say what the label {name!r} is"
    yield from _file_problems("the zoo", manifest["files"], {TABLE, CARD}, set())
    seen: set[str] = set()
    for shard in manifest["shards"]:
        yield from _shard_problems(shard, seen)


def _shard_problems(shard: Any, seen: set[str]) -> Iterator[str]:
    name = shard.get("name") if isinstance(shard, dict) else None
    if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
        yield f"names a shard {name!r}; a name has five digits"
        return
    if name in seen:
        yield f"names the shard {name} twice"
    seen.add(name)
    family = shard.get("family")
    if not isinstance(family, dict) or not isinstance(family.get("class"), str):
        yield f"does not say of which family the models of shard {name} are"
        return
    if not isinstance(family.get("config"), dict):
        yield f"does not say at which sizes the models of shard {name} are"
        return
    yield from _file_problems(f"shard {name}", shard.get("files"), SHARD_FILES, {ROLLOUTS})
    yield from _size_problems(name, shard)


def _size_problems(name: str, shard: Mapping[str, Any]) -> Iterator[str]:
    room = shard["files"][PARAMS]["bytes"] // 4
    if not _count(shard.get("rows")) or shard["rows"] > room:
        yield f"says that shard {name} has {shard.get('rows')!r} rows, for which its {PARAMS} has no room"
    for field, value in shard["family"]["config"].items():
        if type(value) is int and value > min(room, LARGEST_SIZE):
            yield f"says `{field}` (={value}) of shard {name}, for which its {PARAMS} has no room"


def _file_problems(where: str, files: Any, needed: set[str], optional: set[str]) -> Iterator[str]:
    if not isinstance(files, dict) or not needed <= set(files) <= needed | optional:
        named = sorted(files) if isinstance(files, dict) else files
        yield f"names as files of {where} {named!r}, expected {sorted(needed)}"
        return
    for name, entry in files.items():
        if not isinstance(entry, dict) or not _count(entry.get("bytes")) or not isinstance(entry.get("sha256"), str):
            yield f"does not say the bytes and the sha256 of {name} of {where}"


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0
