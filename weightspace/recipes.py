"""Where the recipes that come with the package lie."""

from __future__ import annotations

from pathlib import Path

PLACES = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")


def recipe(name: str) -> Path:
    """Path of a recipe such as `zoo/quickstart.yaml`, in an installed package or in a source tree."""
    for place in PLACES:
        if (place / name).is_file():
            return place / name
    known = sorted({path.relative_to(place).as_posix() for place in PLACES for path in place.rglob("*.yaml")})
    raise ValueError(f"No recipe is called '{name}'; there are {known}.")


def available() -> dict[str, Path]:
    """Every recipe that comes with the package, of zoos and of encoders, by the name of its file without `.yaml`."""
    return {path.stem: path for place in reversed(PLACES) for path in sorted(place.rglob("*.yaml"))}
