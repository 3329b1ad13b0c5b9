"""Ways to run a family over time, one file each."""

from __future__ import annotations

from weightspace.components.discovery import concrete_subclasses, refuse_unknown_name
from weightspace.rollout.methods.base import RolloutMethod

__all__ = ["Method", "RolloutMethod", "available", "named"]

Method = str
"""The name of a rollout method: of its class, in lower case."""


def available() -> dict[str, type[RolloutMethod]]:
    """Every rollout method, by its name."""
    return {name.lower(): kind for name, kind in concrete_subclasses(__name__, RolloutMethod).items()}


def named(method: Method | RolloutMethod) -> RolloutMethod:
    """The method of this name, with its default options, or the method itself."""
    if isinstance(method, RolloutMethod):
        return method
    known = available()
    refuse_unknown_name("rollout method", method, sorted(known))
    return known[method]()
