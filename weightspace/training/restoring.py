"""Encoders restored from checkpoints, whose content is checked before any class that it names is instantiated."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_module
from torch import Tensor

from weightspace.components import plugins
from weightspace.components.construction import Constructed, of_today
from weightspace.encoders import fitting
from weightspace.store import recorded_split
from weightspace.store.checksum import refuse_damaged
from weightspace.training.module import EmbeddingModule
from weightspace.training.trainer import quiet

TRUSTED = ("weightspace.", "zoo_builder.", "probes.", "torch.nn.")
"""Packages whose classes a checkpoint may name, besides enabled packages and components imported already."""


def read_checkpoint(checkpoint: Path | str) -> dict[str, Any]:
    """The content of a checkpoint of `weightspace fit` as plain data; classes are checked by name, not imported."""
    path = Path(checkpoint)
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}; `weightspace fit` writes best.ckpt and last.ckpt.")
    archive = path.read_bytes()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises errors of many types for damaged files.
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is no checkpoint of plain data, which is all that is accepted ({reason}).") from None
    refuse_damaged(path, archive)
    if not isinstance(content, dict) or "weightspace" not in content or "hyper_parameters" not in content:
        raise ValueError(f"{path} is not a checkpoint of `weightspace fit`: it does not say which encoder it holds.")
    try:
        recorded_split(content["weightspace"])
        content["hyper_parameters"] = of_today(content["hyper_parameters"])
        class_paths = list(_class_paths(content["hyper_parameters"]))
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of `weightspace fit`: {error}.") from None
    for class_path in class_paths:
        if not (class_path.startswith(TRUSTED) or plugins.covers(class_path) or _is_imported(class_path)):
            raise ValueError(
                f"{path} names the class {class_path!r}, which is not part of this package. "
                f"{plugins.way_out(class_path)}"
            )
    return content


def _is_imported(class_path: str) -> bool:
    """Whether a component of this path is imported already."""
    module, _, name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and issubclass(kind, Constructed)


def _class_paths(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("class_path", "_class_path"):
                yield str(item)
            else:
                yield from _class_paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _class_paths(item)


def load(checkpoint: Path | str) -> EmbeddingModule:
    """The trained module of a checkpoint; no class outside `TRUSTED` and enabled packages is imported."""
    content = read_checkpoint(checkpoint)
    refuse_misfit(checkpoint, content)
    try:
        with quiet():
            module: EmbeddingModule = instantiate_module(EmbeddingModule, _settings(content))
            module.on_load_checkpoint(content)
            module.load_state_dict(content["state_dict"])
            return module
    except fitting.UNFIT as error:
        raise _misfit(checkpoint, error) from None


def refuse_misfit(checkpoint: Path | str, content: Mapping[str, Any]) -> None:
    """Raise ValueError unless the tensors of a checkpoint are those of the encoder and objective that it describes.

    See `fitting.refuse_misfit`.
    """
    state = content.get("state_dict")
    try:
        if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ValueError("it holds no `state_dict` of tensors")
        with quiet():
            fitting.refuse_misfit(lambda: instantiate_module(EmbeddingModule, _settings(content)), state)
    except fitting.UNFIT as error:
        raise _misfit(checkpoint, error) from None


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, as Lightning recorded them; a copy, which jsonargparse fills with its objects."""
    described = copy.deepcopy(dict(content["hyper_parameters"]))
    return {str(key): value for key, value in described.items() if key != "_instantiator"}


def _misfit(checkpoint: Path | str, error: BaseException) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"{checkpoint} does not fit the encoder and objective that it names: {reason}.")
