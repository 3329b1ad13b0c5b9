"""Families of recurrent networks, one file each; a new file here is found by its class name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.components.discovery import concrete_subclasses, load_from
from weightspace.families.base import Family

__all__ = ["Family", "available", "load"]


def available() -> dict[str, type[Family]]:
    """Every concrete family by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Family)


def load(name: str, fields: Mapping[str, Any]) -> Family:
    """The family with this class name and these fields, as stored in a zoo."""
    return load_from(available(), "family", name, fields)
