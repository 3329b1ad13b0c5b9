"""The shards of a zoo that is being built: which are there, what their own JSON says, which are damaged and go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from weightspace.store import documents
from weightspace.store.durable import PLAN, STAGING, Staging, fsync_folder
from weightspace.store.inside import refuse_links
from weightspace.store.layout import (
    FORMAT,
    MANIFEST,
    PARAMS,
    ROLLOUTS,
    SHARD_MANIFEST,
    SHARD_TABLE,
    SHARDS,
    Damaged,
    file_entry,
    shard_name,
)
from weightspace.store.manifest import shard_problems
from weightspace.store.shard_files import ShardFiles

SHARD_FILES = (PARAMS, ROLLOUTS, SHARD_TABLE, SHARD_MANIFEST)


class OtherPlan(ValueError):
    """A shard that is there was made for another plan."""


def own_json(plan: str, family: Mapping[str, Any], rows: int, files: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a shard's JSON: its plan, and its entry in the manifest."""
    return {"format": FORMAT, "plan": plan, "family": family, "rows": rows, "files": files}


def read_entry(zoo: Path, index: int) -> tuple[str, dict[str, Any]]:
    """The plan to which a shard says that it belongs, and its entry in the manifest; Damaged if it says neither."""
    folder = zoo / SHARDS / shard_name(index)
    path = folder / SHARD_MANIFEST
    if not path.is_file():
        raise Damaged(path, "is missing")
    try:
        said = documents.parse(path.read_bytes())
        plan, family, rows, files = (said[key] for key in ("plan", "family", "rows", "files"))
        if said != own_json(plan, family, rows, files) or not isinstance(plan, str) or not isinstance(files, dict):
            raise ValueError("says what no shard says of itself")
    except KeyError as error:
        raise Damaged(path, f"does not say its {error}") from None
    except ValueError as error:
        raise Damaged(path, str(error)) from None
    entry = {
        "name": folder.name,
        "family": family,
        "rows": rows,
        "files": {**files, SHARD_MANIFEST: file_entry(path)},
    }
    problem = next(shard_problems(entry, set()), None)
    if problem is not None:
        raise Damaged(path, problem)
    return plan, entry


def remove_shard(zoo: Path, index: int) -> None:
    """Take a damaged shard away, if it is there, so that it can be built again; ValueError if it holds other files."""
    target = zoo / SHARDS / shard_name(index)
    refuse_links(zoo, f"{SHARDS}/{target.name}")
    if not target.exists():
        return
    for path in target.iterdir() if target.is_dir() else [target]:
        if path.name not in SHARD_FILES or path.is_symlink() or not path.is_file():
            raise ValueError(f"{path} was not made by a builder and is not deleted; move it away and try again.")
    with Staging(zoo) as staging:
        os.rename(target, staging / target.name)
        fsync_folder(target.parent)


def made_by_builder(folder: Path) -> bool:
    """Whether a folder holds a zoo, finished or not, and not somebody's other files of the same names."""
    if (folder / STAGING / PLAN).is_file() or any(folder.glob(f"{SHARDS}/[0-9]*/{SHARD_MANIFEST}")):
        return True
    try:
        return "digest" in documents.read(folder / MANIFEST)
    except ValueError:
        return False


def absent_shards(zoo: Path, num_shards: int) -> list[int]:
    """Indices of the shards that are not there."""
    folder = zoo / SHARDS
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return [index for index in range(num_shards) if shard_name(index) not in there]


def good_shards(zoo: Path, indices: Iterable[int], plan: str) -> tuple[list[int], dict[int, str]]:
    """Which of these shards are there whole, and what is wrong with the others that are there.

    Raises ValueError if one belongs to another plan than `plan`.
    """
    good, bad = [], {}
    for index in indices:
        if (zoo / SHARDS / shard_name(index)).exists():
            problem = shard_problem(zoo, index, plan)
            if problem is None:
                good.append(index)
            else:
                bad[index] = problem
    return good, bad


def shard_problem(zoo: Path, index: int, plan: str) -> str | None:
    """The problem of a shard by its own JSON, every byte read; None if it is whole."""
    folder = zoo / SHARDS / shard_name(index)
    try:
        found, entry = read_entry(zoo, index)
        if found != plan:
            raise OtherPlan(f"{folder} belongs to another plan, recipe or version. Use another folder for this build.")
        for name, expected in entry["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if file_entry(folder / name) != expected:
                return f"{name} is not what was written"
        # Bytes that are as its JSON says may still be those of another shard.
        ShardFiles(zoo, entry, ()).check()
    except Damaged as error:
        return f"{error.path.name} {error.problem}"
    except OtherPlan:
        raise
    except ValueError as error:
        return str(error).removesuffix(".")
    return None
