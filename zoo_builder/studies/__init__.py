"""One file per reproduced phenomenon of a paper; a new file here is found by its class name."""

from __future__ import annotations

from weightspace.components.discovery import concrete_subclasses, load_from
from zoo_builder.studies.base import Gate, Measured, Study

__all__ = ["Gate", "Measured", "Study", "available", "load"]


def available() -> dict[str, type[Study]]:
    """Every concrete study by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Study)


def load(name: str) -> Study:
    """The study with this class name, at its own size."""
    return load_from(available(), "study", name, {})
