"""Rollout methods, one file each."""

from __future__ import annotations

import re

from weightspace.components.discovery import concrete_subclasses, refuse_unknown_name
from weightspace.rollout.methods.base import RolloutMethod

__all__ = ["Method", "RolloutMethod", "available", "named"]

Method = str
"""The name of a rollout method: of its class, in lower case, its words joined by underscores."""


def available() -> dict[str, type[RolloutMethod]]:
    """Every rollout method, by its name."""
    kinds = concrete_subclasses(__name__, RolloutMethod)
    return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower(): kind for name, kind in kinds.items()}


def named(method: Method | RolloutMethod) -> RolloutMethod:
    """The method of this name, with its default options, or the method itself."""
    if isinstance(method, RolloutMethod):
        return method
    methods = available()
    refuse_unknown_name("rollout method", method, sorted(methods))
    return methods[method]()
