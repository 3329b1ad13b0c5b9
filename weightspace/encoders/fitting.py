"""Modules made from what a file claims, compared with its tensors before memory is spent on them."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from weightspace.declaration import VOCABULARY

M = TypeVar("M", bound=nn.Module)

UNFIT = (ArgumentError, ArithmeticError, AttributeError, KeyError, MemoryError, RuntimeError, TypeError, ValueError)
"""Exceptions that constructors raise for arguments of unknown origin."""
LACKING = 8
"""Tensors that files of an older vocabulary may lack: so many are tolerated until its version is checked."""


def refuse_misfit(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Raise an error of `UNFIT` unless the tensors are those of the module that `make` makes.

    The module is made on the device "meta", without memory, and with no more tensors than there are: sizes that a file
    claims cost nothing until they are compared with its tensors.
    """
    with torch.device("meta"), _at_most(len(tensors)):
        module = make()
    expected = module.state_dict()
    for name in _absent_from_older_files(module) - set(tensors):
        del expected[name]
    _refuse_other_vocabulary(expected, tensors)
    for name in sorted({*expected, *tensors}):
        shapes = [tuple(side[name].shape) if name in side else None for side in (tensors, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"'{name}' has shape {shapes[0]}, but by its settings {shapes[1]}")


def filled(make: Callable[[], M], tensors: Mapping[str, Tensor]) -> M:
    """The module that `make` makes with these tensors, in their one floating dtype, bit for bit."""
    refuse_misfit(make, tensors)
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) > 1:
        raise ValueError(f"its tensors are of {sorted(map(str, dtypes))}; give all one floating dtype, as by .float()")
    # Weights that are replaced at once take no draws from the caller's stream.
    with torch.random.fork_rng(devices=[]):
        module = make()
    for dtype in dtypes:
        module.to(dtype)
    for name, tensor in module.state_dict().items():
        if name in tensors and tensor.dtype != tensors[name].dtype:
            raise ValueError(f"'{name}' is of {tensors[name].dtype}, but by its settings of {tensor.dtype}")
    module.load_state_dict(dict(tensors))
    return module


def _absent_from_older_files(module: nn.Module) -> set[str]:
    """Names of tensors without which a module reads files of earlier versions as those versions did."""
    parts = ((f"{prefix}." if prefix else "", part) for prefix, part in module.named_modules())
    return {prefix + name for prefix, part in parts for name in getattr(part, "absent_from_older_files", ())}


def _refuse_other_vocabulary(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if an encoder was trained with another version of the kinds, roles and slots of weights."""
    for name in expected:
        if name.endswith(".vocabulary") or name == "vocabulary":
            version = int(state[name]) if name in state else 1
            if version != VOCABULARY:
                raise ValueError(
                    f"it reads version {version} of the roles and slots of weights, but this is version {VOCABULARY}; "
                    "train it again, or open it with the release that trained it"
                )


@contextmanager
def _at_most(num_tensors: int) -> Iterator[None]:
    """Raise ValueError when modules register more tensors than this, or very many submodules."""
    remaining = {"tensors": num_tensors + LACKING, "modules": 8 * num_tensors + 64}

    def counted(kind: str, item: object) -> None:
        if item is not None:
            remaining[kind] -= 1
        if remaining[kind] < 0:
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
