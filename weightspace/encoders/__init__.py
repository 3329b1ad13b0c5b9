"""One file per encoder of weight spaces; a new file here is found by its class name."""

from __future__ import annotations

from weightspace.components.discovery import concrete_subclasses
from weightspace.encoders.base import Encoder

__all__ = ["Encoder", "available"]


def available() -> dict[str, type[Encoder]]:
    """Every concrete encoder by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Encoder)
