"""Paths of the recipes that come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from weightspace.components.discovery import refuse_unknown_name

FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")


def recipe(name: str) -> Path:
    """Path of a recipe such as `zoo/quickstart.yaml`, in an installed package or in a source tree."""
    files: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in folder.rglob("*.yaml"):
            files.setdefault(path.relative_to(folder).as_posix(), path)
    refuse_unknown_name("recipe", name, sorted(files))
    return files[name]


def available() -> dict[str, Path]:
    """Every recipe that comes with the package, of zoos and of encoders, by the name of its file without `.yaml`.

    Where two of different kinds have one name, their kind goes before it, as in `zoo/pretraining`.
    """
    found = {path.relative_to(folder): path for folder in reversed(FOLDERS) for path in sorted(folder.rglob("*.yaml"))}
    stems = [name.stem for name in found]
    return {
        name.stem if stems.count(name.stem) == 1 else name.with_suffix("").as_posix(): path
        for name, path in found.items()
    }


def named(config: str | Path, kind: Literal["zoo", "encoder"]) -> Path:
    """The recipe that `--config` means: a path, or the name of one of this kind that comes with the package."""
    path = Path(config)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    files = of_kind(kind)
    refuse_unknown_name(f"file or {kind} recipe", path.name, sorted(files))
    return files[path.name]


def of_kind(kind: Literal["zoo", "encoder"]) -> dict[str, Path]:
    """The recipes of one kind that come with the package, by name."""
    return {file.stem: file for folder in reversed(FOLDERS) for file in sorted((folder / kind).glob("*.yaml"))}


def with_paths(argv: Sequence[str]) -> list[str]:
    """The arguments of `weightspace fit` with a path for each `--config` that names an encoder recipe."""
    paths = []
    for before, argument in zip(["", *argv], argv, strict=False):
        lead = "--config=" if argument.startswith("--config=") else ""
        if lead or before == "--config":
            argument = f"{lead}{named(argument.removeprefix(lead), 'encoder')}"
        paths.append(argument)
    return paths
