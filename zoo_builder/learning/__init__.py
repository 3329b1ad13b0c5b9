"""One file per way in which params come about; a new learner here is found by its class name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.discovery import concrete_subclasses, load_from
from zoo_builder.learning.base import Learned, Learner

__all__ = ["Learned", "Learner", "available", "load"]


def available() -> dict[str, type[Learner]]:
    """Every concrete learner by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Learner)


def load(name: str, fields: Mapping[str, Any]) -> Learner:
    """The learner with this class name and these fields."""
    return load_from(available(), "learner", name, fields)
