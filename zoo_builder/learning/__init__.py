"""Learners: one file each; a new file here is found by its class name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.components.discovery import concrete_subclasses, load_from
from zoo_builder.learning.base import Learned, Learner, Run

__all__ = ["Learned", "Learner", "Run", "available", "load"]


def available() -> dict[str, type[Learner]]:
    """Every concrete learner by class name. A file that does not import raises here."""
    return concrete_subclasses(__name__, Learner)


def load(name: str, fields: Mapping[str, Any]) -> Learner:
    """The learner with this class name and these fields; a group of options is a mapping of its own."""
    groups = available()[name].groups if name in available() else {}
    built: dict[str, Any] = {
        key: load_from(groups, "group of options", key, fields[key])
        for key in groups.keys() & fields.keys()
        if isinstance(fields[key], Mapping)
    }
    return load_from(available(), "learner", name, {**fields, **built})
