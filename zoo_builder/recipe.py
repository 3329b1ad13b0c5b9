"""Reading a recipe: what a YAML file may say, checked before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.discovery import near_match

DEVICES = ["cpu", "cuda"]
DEFAULTS: dict[str, Any] = {
    "title": "A zoo of recurrent networks",
    "seed": 0,
    "tasks": [],
    "shard_size": {"cpu": 64, "cuda": 1024},
    "labels": [],
    "rollouts": None,
    "splits": {},
}
REQUIRED = ("families", "learning", "snapshots", "models_per_cohort")
SPLITS: dict[str, Any] = {"test": 0.2, "val": 0.1, "out_of_distribution": {}}
OUT_OF_DISTRIBUTION: dict[str, Any] = {"task_share": 0.15, "largest_size": True}


def read_recipe(source: str | Path | Mapping[str, Any], seed: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """The recipe of a YAML file or a mapping, with defaults filled in; `seed` replaces its seed.

    `shard_size` may differ between devices, `{cpu: 32, cuda: 1024}`: a GPU is busy with no fewer models. A recipe that
    is read has the number for `device`.
    """
    data = source if isinstance(source, Mapping) else _load_yaml(Path(source))
    known = [*REQUIRED, *DEFAULTS]
    refuse_unknown("The recipe", data, known)
    missing = [key for key in REQUIRED if key not in data]
    if missing:
        raise ValueError(f"The recipe lacks {', '.join(f'`{key}`' for key in missing)}.")
    recipe = {**DEFAULTS, **data}
    recipe["shard_size"] = _for_device("shard_size", recipe["shard_size"], device)
    if seed is not None:
        recipe["seed"] = seed
    recipe["splits"] = _filled("splits", recipe["splits"], SPLITS)
    ood = recipe["splits"]["out_of_distribution"]
    recipe["splits"]["out_of_distribution"] = _filled("out_of_distribution", ood, OUT_OF_DISTRIBUTION)
    if recipe["rollouts"] is not None:
        recipe["rollouts"] = _filled("rollouts", recipe["rollouts"], {"sequences": 8})
    _check_numbers(recipe)
    _check_lists(recipe)
    return recipe


def refuse_unknown(where: str, found: Any, known: list[str]) -> None:
    """Raise ValueError unless `found` is a mapping with known keys only."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} must be a mapping with keys {known}, found {found!r}.")
    for key in found:
        if key not in known:
            raise ValueError(f"{where} has no key '{key}'; it has {known}.{near_match(str(key), known)}")


def _filled(where: str, found: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unknown(f"`{where}`", found or {}, list(defaults))
    return {**defaults, **(found or {})}


def _for_device(where: str, found: Any, device: str) -> Any:
    """The number of a device, where a mapping gives one for each; anything else is for all."""
    if not isinstance(found, Mapping):
        return found
    refuse_unknown(f"`{where}`", found, DEVICES)
    if device not in found:
        raise ValueError(f"`{where}` has no number for {device}; add `{device}`, or give one number for all.")
    return found[device]


def _load_yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2 numbers: 1e-3 is one, which YAML 1.1 takes for text."""

    number = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    if not path.is_file():
        raise ValueError(f"There is no recipe {path}.")
    try:
        # Safe: the loader derives from SafeLoader.
        return yaml.load(path.read_text(), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _check_numbers(recipe: Mapping[str, Any]) -> None:
    positive = {"models_per_cohort": recipe["models_per_cohort"], "shard_size": recipe["shard_size"]}
    if recipe["rollouts"] is not None:
        positive["rollouts.sequences"] = recipe["rollouts"]["sequences"]
    for name, value in positive.items():
        if not _whole(value) or value < 1:
            raise ValueError(f"`{name}` (={value!r}) must be a whole number, at least 1.")
    if not _whole(recipe["seed"]):
        raise ValueError(f"`seed` (={recipe['seed']!r}) must be a whole number.")
    for name in ("test", "val"):
        value = recipe["splits"][name]
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or value < 0
            or (value >= 1 and not _whole(value))
        ):
            raise ValueError(f"`splits.{name}` (={value!r}) must be a share below 1 or a whole number of models.")
    share = recipe["splits"]["out_of_distribution"]["task_share"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"`splits.out_of_distribution.task_share` (={share!r}) must be from 0 to 1.")


def _check_lists(recipe: Mapping[str, Any]) -> None:
    for name in ("families", "tasks"):
        entries = recipe[name]
        if not isinstance(entries, list) or not all(isinstance(e, Mapping) and "class" in e for e in entries):
            raise ValueError(f"`{name}` must be a list of entries with a `class`, found {entries!r}.")
    if not recipe["families"]:
        raise ValueError("`families` is empty; give at least one.")
    if not isinstance(recipe["learning"], Mapping) or "class" not in recipe["learning"]:
        raise ValueError(f"`learning` must be one entry with a `class`, found {recipe['learning']!r}.")
    if not isinstance(recipe["snapshots"], list) or not recipe["snapshots"]:
        raise ValueError(f"`snapshots` must be a list of numbers of updates, found {recipe['snapshots']!r}.")
    if not all(_whole(step) and step >= 0 for step in recipe["snapshots"]):
        raise ValueError(f"`snapshots` must be whole numbers of updates, 0 or more, found {recipe['snapshots']!r}.")
    if not isinstance(recipe["labels"], list) or not all(isinstance(label, str) for label in recipe["labels"]):
        raise ValueError(f"`labels` must be a list of names, found {recipe['labels']!r}.")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
