"""One file per objective; a new file here is found by its class name."""

from __future__ import annotations

from weightspace.components.discovery import concrete_subclasses
from weightspace.objectives.base import Metrics, Objective

__all__ = ["Metrics", "Objective", "available"]


def available() -> dict[str, type[Objective]]:
    """Every concrete objective by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Objective)
