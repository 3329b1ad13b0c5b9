"""Recipes: the keys and values of a YAML file, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.components.discovery import refuse_unknown_options
from weightspace.terminal import shown
from zoo_builder.planning.plain import read_yaml, refuse_odd

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
OPTIONAL = ("models", "tasks_per_family")
"""Keys without a default, as recipes had no such key before and keep their digests. `models` names imported models."""
REQUIRED = ("families", "learning", "snapshots", "models_per_cohort")
SPLITS: dict[str, Any] = {"test": 0.2, "val": 0.1, "out_of_distribution": {}}
OUT_OF_DISTRIBUTION: dict[str, Any] = {"task_share": 0.15, "largest_size": True}


def read_recipe(source: str | Path | Mapping[str, Any], seed: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """The recipe of a YAML file or a mapping, with defaults filled in; `seed` replaces its seed.

    `shard_size` may differ between devices, `{cpu: 32, cuda: 1024}`: a GPU is busy with no fewer models. A recipe that
    is read has the number for `device`.
    """
    data = source if isinstance(source, Mapping) else read_yaml(Path(source))
    refuse_odd({"seed": seed}, "--seed")
    refuse_odd(data, "The recipe")
    known = [*REQUIRED, *DEFAULTS, *OPTIONAL]
    refuse_unknown_keys("The recipe", data, known)
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
    if "models" in recipe:
        _check_models(recipe["models"], len(recipe["families"]))
    if len(learning_entries(recipe)) == 1:
        # A list of one is the same recipe as its only entry.
        (recipe["learning"],) = learning_entries(recipe)
    return recipe


def learning_entries(recipe: Mapping[str, Any]) -> list[Any]:
    """The learners of a recipe, whose `learning` is one entry or a list of them."""
    entries = recipe["learning"] if isinstance(recipe["learning"], list) else [recipe["learning"]]
    if not entries:
        raise ValueError("`learning` is an empty list; give at least one entry with a `class`.")
    return entries


def refuse_unknown_keys(where: str, value: Any, known: list[str]) -> None:
    """Raise ValueError unless `value` is a mapping with known keys only."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping with keys {known}, found {shown(value)}.")
    refuse_unknown_options(where, value, known, "key")


def _filled(where: str, value: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    value = {} if value is None else value
    refuse_unknown_keys(f"`{where}`", value, list(defaults))
    return {**defaults, **value}


def _for_device(where: str, value: Any, device: str) -> Any:
    """Value for a device, where a mapping has one for each; anything else is for all devices."""
    if not isinstance(value, Mapping):
        return value
    refuse_unknown_keys(f"`{where}`", value, DEVICES)
    if device not in value:
        raise ValueError(f"`{where}` has no number for {device}; add `{device}`, or give one number for all.")
    return value[device]


def _check_numbers(recipe: Mapping[str, Any]) -> None:
    positive = {"models_per_cohort": recipe["models_per_cohort"], "shard_size": recipe["shard_size"]}
    if recipe["rollouts"] is not None:
        positive["rollouts.sequences"] = recipe["rollouts"]["sequences"]
    positive |= {name: recipe[name] for name in ("tasks_per_family",) if name in recipe}
    for name, value in positive.items():
        if not _whole(value) or value < 1:
            raise ValueError(f"`{name}` (={shown(value)}) must be a whole number, at least 1.")
    if not _whole(recipe["seed"]):
        raise ValueError(f"`seed` (={shown(recipe['seed'])}) must be a whole number.")
    for name in ("test", "val"):
        value = recipe["splits"][name]
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or value < 0
            or (value >= 1 and not _whole(value))
        ):
            raise ValueError(f"`splits.{name}` (={shown(value)}) must be a share below 1 or a whole number of models.")
    share = recipe["splits"]["out_of_distribution"]["task_share"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"`splits.out_of_distribution.task_share` (={shown(share)}) must be from 0 to 1.")
    largest = recipe["splits"]["out_of_distribution"]["largest_size"]
    if not isinstance(largest, bool):
        raise ValueError(f"`splits.out_of_distribution.largest_size` (={shown(largest)}) must be true or false.")


def _check_lists(recipe: Mapping[str, Any]) -> None:
    for name in ("families", "tasks"):
        entries = recipe[name]
        if not isinstance(entries, list):
            raise ValueError(f"`{name}` must be a list of entries with a `class`, found {shown(entries)}.")
        for index, entry in enumerate(entries):
            _check_entry(f"{name}[{index}]", entry)
    if not recipe["families"]:
        raise ValueError("`families` is empty; give at least one.")
    entries = learning_entries(recipe)
    for index, entry in enumerate(entries):
        _check_entry("learning" if len(entries) == 1 else f"learning[{index}]", entry)
    if not isinstance(recipe["snapshots"], list) or not recipe["snapshots"]:
        raise ValueError(f"`snapshots` must be a list of numbers of updates, found {shown(recipe['snapshots'])}.")
    for step in recipe["snapshots"]:
        if not _whole(step) or step < 0:
            raise ValueError(f"`snapshots` must be whole numbers of updates, 0 or more, found {shown(step)}.")
    if not isinstance(recipe["title"], str):
        raise ValueError(f"`title` must be text, found {shown(recipe['title'])}.")
    if not isinstance(recipe["labels"], list) or not all(isinstance(label, str) for label in recipe["labels"]):
        raise ValueError(f"`labels` must be a list of names, found {shown(recipe['labels'])}.")


def _check_models(models: Any, num_families: int) -> None:
    is_lists = isinstance(models, list) and all(isinstance(names, list) and names for names in models)
    if not is_lists or len(models) != num_families:
        raise ValueError("`models` must be a list of the names of its models for each entry of `families`.")
    names = [name for names in models for name in names]
    odd = next((name for name in names if not isinstance(name, str) or not name), None)
    if odd is not None or len(set(names)) < len(names):
        raise ValueError("`models` must be names that differ.")


def _check_entry(where: str, entry: Any) -> None:
    if not isinstance(entry, Mapping) or "class" not in entry:
        raise ValueError(f"`{where}` must be an entry with a `class`, found {shown(entry)}.")
    if not isinstance(entry["class"], str):
        raise ValueError(f"`{where}.class` must be the name of one class, found {shown(entry['class'])}.")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
