"""How an encoder was trained, read from the checkpoint of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weightspace.store import recorded_split


def provenance_of(objective: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an encoder: what its objective says of itself, and what a checkpoint says of its training."""
    trained = checkpoint["weightspace"]
    split, fold = recorded_split(trained)
    record = {**objective, "zoo": trained.get("zoo"), "models": trained.get("models"), "split": split, "fold": fold}
    settings = dict(checkpoint.get("hyper_parameters", {}))
    record["settings"] = {str(key): value for key, value in settings.items() if key != "_instantiator"}
    if isinstance(checkpoint.get("epoch"), int):
        record["epochs"] = checkpoint["epoch"] + 1
    if isinstance(checkpoint.get("global_step"), int):
        record["updates"] = checkpoint["global_step"]
    for name, state in checkpoint.get("callbacks", {}).items():
        if str(name).startswith("ModelCheckpoint") and isinstance(state.get("current_score"), Tensor):
            record["validation_loss"] = round(float(state["current_score"]), 4)
    return record
