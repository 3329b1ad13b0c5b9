"""Text that came from elsewhere, as a terminal may see it."""

from __future__ import annotations

import unicodedata


def printable(text: object) -> str:
    """The text with what a terminal would obey, not show, written out: `\\x1b[2J` does not clear the screen."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in str(text))
