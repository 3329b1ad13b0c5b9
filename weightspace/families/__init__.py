"""One file per family of recurrent networks; a new file here is found by its class name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from weightspace.families.base import Family

__all__ = ["Family", "available", "load"]


@cache
def available() -> dict[str, type[Family]]:
    """Every concrete family by class name. A file that does not import raises here."""
    found: dict[str, type[Family]] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda i: i.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, Family) and not inspect.isabstract(value):
                found[name] = value
    return found


def load(name: str, fields: Mapping[str, Any]) -> Family:
    """The family with this class name and these fields, as stored in a zoo."""
    families = available()
    if name not in families:
        near = difflib.get_close_matches(name, families, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"No family is called '{name}'; there are {sorted(families)}.{hint}")
    family = families[name]
    known = [p.name for p in inspect.signature(family).parameters.values()]
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"{name} has no option '{key}'; it has {known}.{hint}")
    return family(**fields)
