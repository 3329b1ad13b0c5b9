"""One file per objective; a new file here is found by its class name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from weightspace.objectives.base import Metrics, Objective

__all__ = ["Metrics", "Objective", "available"]


@cache
def available() -> dict[str, type[Objective]]:
    """Every concrete objective by class name. A file that does not import raises here."""
    found: dict[str, type[Objective]] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda i: i.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, Objective) and not inspect.isabstract(value):
                found[name] = value
    return found
