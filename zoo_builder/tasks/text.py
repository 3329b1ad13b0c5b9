"""Texts that networks read character by character."""

from __future__ import annotations

import hashlib
import lzma
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789!\"&'(),-.:;?[]\n "
"""The characters of a text, whose places in this string are their numbers; capitals are read as small letters."""
TRAGEDIES = Path(__file__).parent / "texts" / "tragedies.txt.xz"
TRAGEDIES_SHA256 = "4d95edde150d0f428c85f2167086c9cf5c5bac86c0aae23c6bf95b1a24e575b1"
TEST_SHARE = 0.1
LARGEST = 2**27
"""Most bytes of a text."""


class Text(NamedTuple):
    """A text as numbers of characters, int64."""

    train: Tensor
    """The first nine tenths."""
    test: Tensor
    """The last tenth."""


def read_text(path: str | None, sha256: str | None) -> Text:
    """The text of a file, or six tragedies of Shakespeare without one; ValueError where it cannot be read.

    `sha256` is the expected hash of the bytes, None if any will do.
    """
    if path is None:
        return _tragedies()
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"`path` (={path!r}) is not a file; give a text file, or leave it out for the packaged text.")
    status = file.stat()
    if status.st_size > LARGEST:
        raise ValueError(f"The text {path!r} has {status.st_size} bytes, at most {LARGEST} are read; give a part.")
    # Size and time of the last change, so that a file that was written anew is read anew.
    return _read(path, sha256, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _tragedies() -> Text:
    data = lzma.decompress(TRAGEDIES.read_bytes())
    return numbered(_decoded(TRAGEDIES.stem, data, TRAGEDIES_SHA256), TRAGEDIES.stem)


@lru_cache(maxsize=4)
def _read(path: str, sha256: str | None, size: int, changed: int) -> Text:
    return numbered(_decoded(path, Path(path).read_bytes(), sha256), path)


def _decoded(name: str, data: bytes, sha256: str | None) -> str:
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(f"The text {name!r} has the sha256 {found}, expected {sha256}: it is another text.")
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"The text {name!r} is not UTF-8 ({error.reason}, byte {error.start}); convert it.") from None


def numbered(text: str, name: str) -> Text:
    """The two parts of a text as numbers of characters; ValueError where a character is not in the alphabet."""
    small = text.lower()
    unknown = sorted(set(small) - set(ALPHABET))
    if unknown:
        place = min(small.index(character) for character in unknown)
        line = small.count("\n", 0, place) + 1
        shown = ", ".join(repr(character) for character in unknown[:8])
        raise ValueError(
            f"The text {name!r} has {len(unknown)} unknown characters ({shown}), the first in line {line}; known are "
            f"letters, digits, blanks, line ends and {ALPHABET[36:50]}: replace the others."
        )
    codes = torch.tensor(list(small.encode("ascii")), dtype=torch.int64)
    table = torch.zeros(128, dtype=torch.int64)
    table[[ord(character) for character in ALPHABET]] = torch.arange(len(ALPHABET))
    numbers = table[codes]
    first = len(numbers) - round(TEST_SHARE * len(numbers))
    return Text(numbers[:first], numbers[first:])
