"""Pairings: a family with its task and learner, and the name of their cohort."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightspace.families import Family
from weightspace.store import digest
from zoo_builder.learning import Learner
from zoo_builder.planning.spread import Spread
from zoo_builder.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """One family at one size, one task and one learner, with the fields that are spread over models."""

    family: Family
    task: Task | None
    learner: Learner
    task_spreads: Mapping[str, Spread]
    learning_spreads: Mapping[str, Spread]


def cohort_name(pairing: Pairing, *, with_learner: bool) -> str:
    """A readable name, unique by a digest of everything the cohort's models share, the learner only `with_learner`.

    Options at their defaults are left out: a family or task that gains an option keeps its models.
    """
    family, task, learner = pairing.family, pairing.task, pairing.learner
    parts = [_snake(type(family).__name__)]
    for key, value in _chosen(family).items():
        if key not in ("input_size", "output_size", "start_size"):
            short = key.removeprefix("num_").removesuffix("_size")
            parts.append(str(value) if isinstance(value, str) else f"{short}{value}")
    shared: dict[str, Any] = {"family": type(family).__name__, "config": _chosen(family)}
    if task is not None:
        parts.append(_snake(type(task).__name__))
        config = {key: value for key, value in _chosen(task).items() if key not in task.varying}
        shared["task"] = {"class": type(task).__name__, "config": config}
    if with_learner:
        parts.append(_snake(type(learner).__name__))
        spreads = {key: [spread.kind, *spread.bounds] for key, spread in pairing.learning_spreads.items()}
        shared["learner"] = {"class": type(learner).__name__, "config": _chosen(learner), "spreads": spreads}
    name = "-".join([*parts, digest(shared)[:6]])
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _chosen(declaration: Family | Task | Learner) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(declaration)}
    return {key: value for key, value in declaration.config.items() if value != defaults[key]}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
