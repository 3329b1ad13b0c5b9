"""The terminal: text of unknown origin made safe to print in it, and whether it shows progress."""

from __future__ import annotations

import reprlib
import sys
import unicodedata

LENGTH = 80
"""Characters of a value in a message."""


def printable(text: object) -> str:
    """The text with control characters escaped: `\\x1b[2J` does not clear the screen."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in str(text))


def shows_bars() -> bool:
    """Whether stderr draws a progress bar over itself: that of a terminal does, and that of a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")


def shown(value: object) -> str:
    """The repr of a value for an error message: one line, at most LENGTH characters."""
    text = _Short().repr(value).replace("\n", " ")
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 3]}..."


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = LENGTH

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**LENGTH:
            return super().repr_int(x, level)
        # Python refuses to format numbers of more than a few thousand digits.
        return f"a number of about {x.bit_length() * 3 // 10} digits"
