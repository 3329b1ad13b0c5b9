"""Checks of zoo.json on reading: known format, unedited, every field of its type, no path outside the zoo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weightspace.store import documents
from weightspace.store.inside import refuse_outside
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
    TASKS,
    sealed,
    shard_name,
)
from weightspace.store.task_io import task_problems

SHARD_FILES = {PARAMS, SHARD_TABLE, SHARD_MANIFEST}
FIELDS = {
    "shards": list,
    "files": dict,
    "recipe": dict,
    "labels": dict,
    "executor": dict,
    "generator": dict,
    "families": list,
    "plan": str,
    "num_models": int,
}
LARGEST_SIZE = 100_000
"""Bound on sizes and layers of a model: a manifest that claims more would only fill the memory."""


class DamagedManifest(ValueError):
    """zoo.json was changed since it was written."""


def read_manifest(path: Path) -> dict[str, Any]:
    """zoo.json of a finished zoo, checked as far as it can be without reading the shards."""
    file = path / MANIFEST
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give the folder that `zoo-builder build --out` made.")
    if not file.is_file():
        inside = sorted(inner.parent.name for inner in path.glob(f"*/{MANIFEST}"))
        hint = f" It holds the zoo {path / inside[0]}." if inside else ""
        raise ValueError(
            f"{path} has no {MANIFEST}: not a zoo, or unfinished (run the same build, or label, again).{hint}"
        )
    refuse_outside(path, file)
    way_out = " Run the same `zoo-builder build` again: it is made anew from the shards."
    try:
        manifest = documents.parse(file.read_bytes())
    except ValueError as error:
        raise DamagedManifest(f"{file} {error}.{way_out}") from None
    version = manifest.get("format")
    if type(version) is int and version > FORMAT:
        raise ValueError(f"{path} has format {version}, this version reads up to {FORMAT}; upgrade weightspace.")
    if type(version) is not int or version != FORMAT:
        raise DamagedManifest(f"{file} has format {version!r}, expected {FORMAT}.{way_out}")
    check_manifest(manifest, str(file), way_out)
    return manifest


def check_manifest(manifest: Any, file: str, way_out: str = "") -> None:
    """Raise DamagedManifest if a manifest was edited, ValueError if the digest is right but the content invalid."""
    try:
        intact = sealed(manifest) == manifest
    except (ValueError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise DamagedManifest(f"{file} was edited: its digest is not that of its content.{way_out}")
    problem = next(_problems(manifest), None)
    if problem is not None:
        raise ValueError(f"{file} {problem}. `zoo-builder` did not write it; do not use this zoo.")


def _problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Problems of a manifest, most basic first, each completing a sentence that begins with its path."""
    for name, kind in FIELDS.items():
        if not isinstance(manifest.get(name), kind) or isinstance(manifest[name], bool):
            yield f"has no {kind.__name__} of `{name}`"
            return
    yield from _head_problems(manifest)
    yield from _file_problems("the zoo", manifest["files"], {TABLE, CARD}, {TASKS})
    seen: set[str] = set()
    for shard in manifest["shards"]:
        yield from shard_problems(shard, seen)
    if sorted(seen) != [shard_name(index) for index in range(len(seen))]:
        yield f"has the shards {', '.join(sorted(seen))}, expected all from {shard_name(0)} on"
    if [shard["name"] for shard in manifest["shards"]] != sorted(seen):
        yield "does not have its shards in their order"


def _head_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Problems of a manifest's entries about the zoo as a whole."""
    for name in ("method", "device"):
        if not isinstance(manifest["executor"].get(name), str):
            yield f"does not say the `{name}` of its `executor`"
    if not isinstance(manifest["recipe"].get("title", ""), str):
        yield f"has {manifest['recipe']['title']!r} as the title of its `recipe`, expected text"
    for family in manifest["families"]:
        if not isinstance(family, dict) or not isinstance(family.get("class"), str):
            yield "does not say the class of one of its `families`"
    for name, label in manifest["labels"].items():
        if (
            not KEY.fullmatch(name)
            or not isinstance(label, dict)
            or not all(isinstance(label.get(key), str) for key in ("unit", "definition"))
            or not isinstance(label.get("measured_with", {}), dict)
        ):
            yield f"does not say what the label {name!r} is"
    tasks = manifest.get("tasks", {})
    if not isinstance(tasks, dict):
        yield "has no dict of `tasks`"
        return
    for name, task in tasks.items():
        yield from task_problems(name, task)


def shard_problems(shard: Any, seen: set[str]) -> Iterator[str]:
    """Problems of the entry of a shard, most basic first; its name is added to `seen`, for repeated names."""
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
    num_weights = shard["files"][PARAMS]["bytes"] // 4
    if not _count(shard.get("rows")) or not 0 < shard["rows"] <= num_weights:
        yield f"says that shard {name} has {shard.get('rows')!r} rows, for which its {PARAMS} has no room"
    for field, value in shard["family"]["config"].items():
        if type(value) is int and value > min(num_weights, LARGEST_SIZE):
            yield f"says `{field}` (={value}) of shard {name}, for which its {PARAMS} has no room"


def _file_problems(owner: str, files: Any, needed: set[str], optional: set[str]) -> Iterator[str]:
    if not isinstance(files, dict) or not needed <= set(files) <= needed | optional:
        named = sorted(files) if isinstance(files, dict) else files
        yield f"names as files of {owner} {named!r}, expected {sorted(needed)}"
        return
    for name, entry in files.items():
        if not isinstance(entry, dict) or not _count(entry.get("bytes")) or not isinstance(entry.get("sha256"), str):
            yield f"does not say the bytes and the sha256 of {name} of {owner}"


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0
