"""Text that came from elsewhere, as a terminal may see it."""

from __future__ import annotations

import reprlib
import unicodedata

LENGTH = 80
"""Characters of a value in a message."""


def printable(text: object) -> str:
    """The text with what a terminal would obey, not show, written out: `\\x1b[2J` does not clear the screen."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in str(text))


def shown(value: object) -> str:
    """A value as a message shows it: in one line, and shortened, whatever somebody wrote there."""
    text = _Short().repr(value).replace("\n", " ")
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 3]}..."


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = LENGTH

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**LENGTH:
            return super().repr_int(x, level)
        # Python writes no number of more than some thousand digits.
        return f"a number of about {x.bit_length() * 3 // 10} digits"
