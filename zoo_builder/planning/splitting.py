"""The splits of a plan: which models are for training, validation and test, by the recipe and their names alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightspace.rollout.streams import derive_key


def splits_of(recipe: Mapping[str, Any], ids: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The split of every model by cohort: exact numbers overall, as even over cohorts as they divide.

    `ids` are the names of the models of each cohort. ValueError where a cohort of models that are trained here would
    have none for training; imported ones are as many as they are.
    """
    seed = recipe["seed"]
    counts = {split: _counts(recipe, split, {name: len(models) for name, models in ids.items()}) for split in SPLITS}
    result = {}
    for name, models in ids.items():
        test, val = (counts[split][name] for split in SPLITS)
        if test + val >= len(models) and "models" not in recipe:
            raise ValueError(
                f"`splits` leave no training models in a cohort of {len(models)}: {test} test and {val} val."
            )
        order = sorted(range(len(models)), key=lambda i: derive_key(seed, models[i], "plan/split"))
        rank = {model: position for position, model in enumerate(order)}
        result[name] = tuple(
            "test" if rank[i] < test else "val" if rank[i] < test + val else "train" for i in range(len(models))
        )
    return result


SPLITS = ("test", "val")


def _counts(recipe: Mapping[str, Any], split: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Models of a split in each cohort: its share rounded down, and one more where the largest parts were cut off."""
    share, total = recipe["splits"][split], sum(sizes.values())
    number = share if isinstance(share, int) else round(share * total)
    counts = {name: number * size // total for name, size in sizes.items()}
    by_remainder = sorted(
        sizes, key=lambda name: (-(number * sizes[name] % total), derive_key(recipe["seed"], name, f"plan/{split}"))
    )
    for name in by_remainder[: number - sum(counts.values())]:
        counts[name] += 1
    return counts
