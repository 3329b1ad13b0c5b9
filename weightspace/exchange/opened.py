"""Zoos opened wherever they are: in their folder, or in an export of `weightspace export`, here or on the Hub."""

from __future__ import annotations

from pathlib import Path

from weightspace import store
from weightspace.exchange.replaced import RECORD
from weightspace.store import Zoo


def open_zoo(source: str | Path) -> Zoo:
    """Open a finished zoo: its folder, or an export of `weightspace export`, a folder or a repository OWNER/NAME.

    Of an export the zoo is made again in a cache, byte for byte, and `path` says where: every command takes that.
    ValueError names the problem and the way out.
    """
    path = Path(source)
    # Beside folders that are here a missing one is a slip, of which the Hub knows nothing.
    is_name = str(source).count("/") == 1 and not path.parent.exists()
    if (path / RECORD).is_file() or is_name:
        # The client of the Hub takes a second to import.
        from weightspace.exchange.unpacked import located

        path = located(str(source))
    return store.open_zoo(path)
