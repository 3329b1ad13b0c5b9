"""Weight spaces of recurrent networks, the functions they compute, and what is learned about them.

What a notebook needs is here, `import weightspace as ws`; each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.8.0"

_HOMES = {
    "build_zoo": ("weightspace.face", "build_zoo"),
    "check_encoder": ("weightspace.checks", "assert_encoder"),
    "check_family": ("weightspace.checks", "assert_family"),
    "embed": ("weightspace.face", "embed"),
    "Embedder": ("weightspace.transformer", "Embedder"),
    "families": ("weightspace.families", ""),
    "fixed_points": ("weightspace.face", "fixed_points"),
    "from_torch": ("weightspace.models", "from_torch"),
    "load_encoder": ("weightspace.face", "load_encoder"),
    "measure": ("weightspace.face", "measure"),
    "open_zoo": ("weightspace.face", "open_zoo"),
    "predict": ("weightspace.face", "predict"),
    "rollout": ("weightspace.rollout", ""),
    "to_data": ("weightspace.face", "to_data"),
    "trajectories": ("weightspace.face", "trajectories"),
}
"""Name -> its module, and its name there ("" for the module itself: the package `rollout` can be called)."""

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'weightspace' has no attribute '{name}'; it has {sorted(_HOMES)}")
    module, inside = _HOMES[name]
    home = importlib.import_module(module)
    value = getattr(home, inside) if inside else home
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
