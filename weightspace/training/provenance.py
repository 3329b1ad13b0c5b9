"""How an encoder was trained, read from the checkpoint of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weightspace.objectives.base import Objective
from weightspace.store import recorded_split


def described(objective: Objective, started_from: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of an objective in the record of a training, with the labels that it and earlier training know of.

    `started_from` is the record of the encoder that the training started from, or None for a new one.
    """
    earlier = started_from or {}
    with_labels = "labels" in (objective.learned_with, earlier.get("learned_with"))
    record = {
        "objective": type(objective).__name__,
        "learned_with": "labels" if with_labels else objective.learned_with,
        "label_adjacent": list(dict.fromkeys([*objective.label_adjacent, *earlier.get("label_adjacent", ())])),
    }
    return record if started_from is None else {**record, "started_from": dict(started_from)}


def provenance_of(objective: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an encoder: what its objective says of itself, and what a checkpoint says of its training."""
    trained = checkpoint["weightspace"]
    split, fold = recorded_split(trained)
    record = {**objective, "zoo": trained.get("zoo"), "models": trained.get("models"), "split": split, "fold": fold}
    settings = dict(checkpoint.get("hyper_parameters", {}))
    record["settings"] = _for_json({str(key): value for key, value in settings.items() if key != "_instantiator"})
    if isinstance(checkpoint.get("epoch"), int):
        record["epochs"] = checkpoint["epoch"] + 1
    if isinstance(checkpoint.get("global_step"), int):
        record["updates"] = checkpoint["global_step"]
    for name, state in checkpoint.get("callbacks", {}).items():
        if str(name).startswith("ModelCheckpoint") and isinstance(state.get("current_score"), Tensor):
            record["validation_loss"] = round(float(state["current_score"]), 4)
    return record


def _for_json(value: Any) -> Any:
    """Settings as JSON holds them: a bound that is infinite, and so open, is null."""
    if isinstance(value, Mapping):
        return {str(key): _for_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
