"""Encoders made again from checkpoints, whose content is checked before anything that it names is made."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_module
from torch import Tensor
from torch.nn.modules import module as registration

from weightspace.components import plugins
from weightspace.components.construction import Constructed, of_today
from weightspace.store import recorded_split
from weightspace.store.checksum import refuse_damaged
from weightspace.training.module import EmbeddingModule
from weightspace.training.trainer import quiet

TRUSTED = ("weightspace.", "zoo_builder.", "probes.", "torch.nn.")
"""Where classes that a checkpoint names may come from, besides allowed packages and imported components."""

_UNFIT = (ArgumentError, ArithmeticError, AttributeError, KeyError, MemoryError, RuntimeError, TypeError, ValueError)


def read_checkpoint(checkpoint: Path | str) -> dict[str, Any]:
    """The content of a checkpoint of `weightspace fit`, read as plain data, its classes checked but not imported."""
    path = Path(checkpoint)
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}; `weightspace fit` writes best.ckpt and last.ckpt.")
    archive = path.read_bytes()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises errors of many kinds here, by what is wrong with the file.
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
    """Whether a component is there already under this path; nothing is imported to find out."""
    module, _, name = class_path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, Constructed)


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
    """The trained module of a checkpoint; nothing that it names is imported from elsewhere."""
    content = read_checkpoint(checkpoint)
    refuse_misfit(checkpoint, content)
    try:
        with quiet():
            module: EmbeddingModule = instantiate_module(EmbeddingModule, _settings(content))
            module.on_load_checkpoint(content)
            module.load_state_dict(content["state_dict"])
            return module
    except _UNFIT as error:
        raise _misfit(checkpoint, error) from None


def refuse_misfit(checkpoint: Path | str, content: Mapping[str, Any]) -> None:
    """Raise ValueError unless the tensors of a checkpoint are those of the encoder and objective that it describes.

    They are made without memory for that (on the device "meta"), and no further than the checkpoint has tensors: what
    sizes it claims costs nothing until they are known to be those of its tensors.
    """
    state = content.get("state_dict")
    try:
        if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ValueError("it holds no `state_dict` of tensors")
        with quiet(), torch.device("meta"), _at_most(len(state)):
            module = instantiate_module(EmbeddingModule, _settings(content))
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if expected != found:
            wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))[0]
            raise ValueError(f"'{wrong}' has shape {found.get(wrong)}, but by its settings {expected.get(wrong)}")
    except _UNFIT as error:
        raise _misfit(checkpoint, error) from None


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments from which Lightning's command line made the module."""
    described = dict(content["hyper_parameters"])
    return {str(key): value for key, value in described.items() if key != "_instantiator"}


@contextmanager
def _at_most(num_tensors: int) -> Iterator[None]:
    """Let no more tensors become part of modules than this, and not many more modules."""
    left = {"tensors": num_tensors, "modules": 8 * num_tensors + 64}

    def counted(kind: str, item: Any) -> None:
        if item is not None:
            left[kind] -= 1
        if left[kind] < 0:
            raise ValueError(f"its settings describe more than the {num_tensors} tensors that it holds")

    with ExitStack() as hooks:
        for register, kind in (
            (registration.register_module_parameter_registration_hook, "tensors"),
            (registration.register_module_buffer_registration_hook, "tensors"),
            (registration.register_module_module_registration_hook, "modules"),
        ):
            hook = register(lambda module, name, item, kind=kind: counted(kind, item))
            hooks.callback(hook.remove)
        yield


def _misfit(checkpoint: Path | str, error: BaseException) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"{checkpoint} does not fit the encoder and objective that it names: {reason}.")
