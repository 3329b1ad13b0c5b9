"""Paths of the recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

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
    """Every recipe that comes with the package, of zoos and of encoders, by the name of its file without `.yaml`."""
    return {path.stem: path for folder in reversed(FOLDERS) for path in sorted(folder.rglob("*.yaml"))}
