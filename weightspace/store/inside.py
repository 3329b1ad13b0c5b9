"""Links in a zoo folder: readers refuse those that lead out of it, writers refuse all."""

from __future__ import annotations

from pathlib import Path


def refuse_outside(zoo: Path, path: Path) -> None:
    """Raise ValueError if a path of a zoo is, or leads through, a link out of the zoo."""
    if not path.resolve().is_relative_to(zoo.resolve()):
        raise ValueError(f"{path} is a link out of the zoo, which is refused.")


def refuse_links(zoo: Path, *names: str) -> None:
    """Raise ValueError if one of these paths, relative to the zoo, is or leads through a link, also a dangling one.

    The zoo's own folder may be reached through links: that was the user's choice.
    """
    for name in names:
        path = zoo
        for part in Path(name).parts:
            path /= part
            if path.is_symlink():
                raise ValueError(
                    f"{path} is a link, which is refused: nothing is written or deleted through one. "
                    "Remove it, or put what it leads to in its place."
                )
