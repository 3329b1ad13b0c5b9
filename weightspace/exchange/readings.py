"""Readings of a state dict: every recurrent module in it as a model, by what its tensors and a few words say."""

from __future__ import annotations

import re
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from weightspace.exchange.files import read_keys, read_tensors, tensor_files
from weightspace.exchange.layouts import torch_names
from weightspace.exchange.sidecar import convertible, kind_of, read_options, sidecar_of
from weightspace.exchange.state_dicts import SIDECAR, of_tensors, without_wrappers
from weightspace.families.computed import plain, refuse_computed
from weightspace.families.layered import Layered
from weightspace.spec import Params

RECURRENT = re.compile(r"(?:(.*?)\.)??(?:parametrizations\.)?weight_hh(?:_l\d+)?(?:_reverse)?(?:[._].*)?")
"""Name of a recurrent matrix, or of what it is computed from; the group is the name of its module."""
DIRECTIONS = {"": "forward", "_reverse": "backward"}
"""End of the names of a direction's tensors in torch.nn -> name of its reading."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What tensors cannot say: the names of modules, of tensors in the file, and options of torch.nn."""

    recurrent: str | None = None
    """Name of the recurrent module, None for every one in a file."""
    readout: str | None = None
    """Name of the linear map that reads it, None where there is none."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of torch.nn that a sidecar could give, such as `nonlinearity`."""
    keys: Mapping[str, str] | None = None
    """Name of a tensor in the file -> its name in torch.nn, Keras or Flax."""

    @classmethod
    def of(
        cls,
        recurrent: str | None = None,
        readout: str | None = None,
        nonlinearity: str | None = None,
        keys: str | Path | None = None,
    ) -> Words:
        """The words of a command's options."""
        options = {} if nonlinearity is None else {"nonlinearity": nonlinearity}
        names = None if keys is None else read_keys(Path(keys))
        return cls(recurrent=recurrent, readout=readout, options=options, keys=names)


NO_WORDS = Words()


class Reading(NamedTuple):
    """A model in a file: its name, family, and params in the dtype of the file, half precision as float32."""

    name: str
    family: Layered
    params: Params
    is_backward: bool
    """Whether it reads sequences from their end, as one direction of a bidirectional layer does."""


def readings_of(folder: str | Path, words: Words = NO_WORDS) -> Iterator[Reading]:
    """The models of a folder of files (safetensors or npz), in the order of their names, by `read_models`."""
    for path in tensor_files(Path(folder)):
        yield from read_models(path, words)


def read_models(path: str | Path, words: Words = NO_WORDS) -> list[Reading]:
    """Every recurrent module of a file of tensors as a model: those of torch.nn, Keras and Flax.

    A model is called NAME like its file, NAME.MODULE where the file has several. Both directions of a bidirectional
    layer are models of their own, `.forward` and `.backward`, the latter of inputs in reverse order; above the first
    layer each reads what both directions below say, so that every layer is then a model, `.l0.forward` and so on.
    Options in NAME.json beside the file go before `words`. ValueError names what differs, and what to say.
    """
    path = Path(path)
    tensors = without_wrappers(path, read_tensors(path, words.keys))
    # Both biases are added up, which would round in half precision.
    wide = {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in tensors.items()}
    tensors = torch_names(wide, str(path))
    sidecar = path.with_suffix(SIDECAR)
    options = read_options(sidecar, path) if sidecar.is_file() else {}
    named = options.pop("recurrent", words.recurrent)
    readout = options.pop("readout", words.readout)
    modules = _modules(path, tensors, named)
    if readout is not None and len(modules) > 1:
        raise ValueError(
            f"{path} has the recurrent modules {_listed(modules)}, and `readout` '{readout}' reads one of them; say "
            "which is `recurrent`."
        )
    models = []
    for module in modules:
        lead = [path.stem, module] if len(modules) > 1 else [path.stem]
        for part, weights in _parts(path, module, tensors):
            if readout is not None:
                if part:
                    raise ValueError(
                        f"'{module}' of {path} is bidirectional: `readout` '{readout}' reads both directions, and a "
                        "model has one; leave it out."
                    )
                weights |= _head(path, readout, module, tensors)
            name = ".".join([*lead, part] if part else lead)
            family, params = _read(path, module, weights, options, words)
            models.append(Reading(name, family, params, part.endswith(DIRECTIONS["_reverse"])))
    return models


def _read(
    path: Path, module: str, weights: Mapping[str, Tensor], options: Mapping[str, Any], words: Words
) -> tuple[Layered, Params]:
    described = {**_inferred(path, module, weights), **options}
    kind = convertible().get(str(described["class"]))
    for option in _unseen(kind) if kind is not None else ():
        # What is said for all files holds for those that have the option.
        if option in words.options:
            described.setdefault(option, words.options[option])
        if option not in described and "class" not in options:
            choices = typing.get_args(typing.get_type_hints(kind)[option])
            raise ValueError(
                f"{path} holds a torch.nn.{described['class']}, whose tensors do not say its `{option}`; add "
                f"`--{option} {choices[0]}` ({' or '.join(choices)}), or put it into {path.with_suffix(SIDECAR).name}."
            )
    sidecar = sidecar_of(described, path.with_suffix(SIDECAR), path)
    return of_tensors(path, sidecar, weights)


def _unseen(kind: type[Layered]) -> list[str]:
    """Options that choose the function of a family, and not the shapes of its tensors."""
    return [name for name, hint in typing.get_type_hints(kind).items() if typing.get_origin(hint) is Literal]


def _modules(path: Path, tensors: Collection[str], named: str | None) -> list[str]:
    """Names of the recurrent modules, or of the one that is named, whatever stands in front of it."""
    found = sorted({match[1] or "" for match in map(RECURRENT.fullmatch, tensors) if match})
    if not found:
        raise ValueError(
            f"{path} has no recurrent module of torch.nn, Keras or Flax; it holds {sorted(tensors)[:8]}. A key map "
            "(`--key_map FILE`) gives its tensors the names they have there."
        )
    if named is None:
        return found
    matching = [module for module in found if module == named or module.endswith(f".{named}")]
    if len(matching) != 1:
        raise ValueError(
            f"`recurrent` '{named}' is {len(matching) or 'none'} of the recurrent modules {_listed(found)} of {path}; "
            "give the name of one."
        )
    return matching


def _listed(modules: Collection[str]) -> list[str]:
    return [module or "(no name)" for module in modules][:20]


def _inside(module: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module itself, computed ones made plain; those of modules in it are left out."""
    dotted = f"{module}." if module else ""
    inside = {name.removeprefix(dotted): tensor for name, tensor in tensors.items() if name.startswith(dotted)}
    kept = {name: tensor for name, tensor in inside.items() if "." not in name or name.startswith("parametrizations.")}
    return plain(kept)


def _parts(path: Path, module: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Name and tensors, by their names in a layer or cell of torch.nn, of each model in a recurrent module."""
    weights = {name: tensor for name, tensor in _inside(module, tensors).items() if _is_recurrent(name)}
    if not any(name.endswith("_reverse") for name in weights):
        yield "", weights
        return
    layers = sorted({int(match[1]) for match in (re.search(r"_l(\d+)", name) for name in weights) if match})
    for layer in layers:
        for ending, direction in DIRECTIONS.items():
            tail = f"_l{layer}{ending}"
            part = {
                f"{name.removesuffix(tail)}_l0": tensor for name, tensor in weights.items() if name.endswith(tail)
            }
            yield direction if len(layers) == 1 else f"l{layer}.{direction}", part


def _is_recurrent(name: str) -> bool:
    return re.match(r"(parametrizations\.)?(weight|bias)_(ih|hh|hr)", name) is not None


def _head(path: Path, readout: str, module: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias of the read-out, which has the same prefix as the recurrent module or none."""
    fronts = [module[: match.end()] for match in re.finditer(r"\.", module)][::-1]
    for front in [*fronts, ""]:
        inside = _inside(f"{front}{readout}", tensors)
        if "weight" in inside:
            return {f"readout.{name}": inside[name] for name in ("weight", "bias") if name in inside}
    heads = sorted(name.removesuffix(".weight") for name, t in tensors.items() if _is_linear(name, t))
    raise ValueError(f"{path} has no `readout` '{readout}' with a weight; its linear maps are {heads[:20]}.")


def _is_linear(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.dim() == 2


def _inferred(path: Path, module: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Class, sizes and layout of the layer or cell of torch.nn with these tensors."""
    where = f"'{module}' of {path}" if module else str(path)
    if any(name.startswith("weight_hr") for name in weights):
        raise ValueError(
            f"{where} is an LSTM with projections (`proj_size`), whose states are projected before they recur; no "
            "family has that."
        )
    is_cell = "weight_hh" in weights
    ending = "" if is_cell else "_l0"
    refuse_computed(where, [f"weight_hh{ending}", f"weight_ih{ending}"], weights)
    matrix, reading = weights.get(f"weight_hh{ending}"), weights.get(f"weight_ih{ending}")
    if matrix is None or reading is None or matrix.dim() != 2 or reading.dim() != 2 or 0 in matrix.shape:
        raise ValueError(f"{where} holds {sorted(weights)[:8]}, which are not the tensors of a layer of torch.nn.")
    hidden = matrix.shape[1]
    kinds = {max(len(kind.gates), 1) * hidden: kind for kind in convertible().values()}
    kind = kinds.get(matrix.shape[0])
    if kind is None:
        raise ValueError(
            f"'weight_hh{ending}' of {where} has shape {tuple(matrix.shape)}, expected (rows, units) with 1 row per "
            "unit (RNN), 3 (GRU) or 4 (LSTM)."
        )
    options: dict[str, Any] = {
        "class": kind.torch_cell.__name__ if is_cell and kind.torch_cell is not None else kind.torch_class.__name__,
        "input_size": reading.shape[1],
        "hidden_size": hidden,
        "num_layers": 1 if is_cell else len([name for name in weights if name.startswith("weight_hh_l")]),
        "bias": f"bias_ih{ending}" in weights,
    }
    if "readout.weight" in weights:
        options |= {"readout": "readout", "output_size": len(weights["readout.weight"])}
        options["readout_bias"] = "readout.bias" in weights
    return options


def of_module(
    module: nn.Module, readout: nn.Linear | None = None, direction: str | None = None
) -> tuple[Layered, Params]:
    """The family and params of a torch.nn layer or cell, as `Layered.from_torch`, or of one direction of a layer."""
    kind = kind_of(nn.utils.parametrize.type_before_parametrizations(module).__name__, "The module")
    if not getattr(module, "bidirectional", False):
        if direction is not None:
            raise ValueError(f"`direction` is '{direction}', but the module is not bidirectional; leave it out.")
        return kind.from_torch(cast("nn.RNNBase | nn.RNNCellBase", module), readout)
    path = Path(f"nn.{type(module).__name__}")
    parts = dict(_parts(path, "", {name: tensor.detach() for name, tensor in module.state_dict().items()}))
    if direction not in parts or readout is not None:
        raise ValueError(
            f"The {path} is bidirectional, and a model is one direction without a read-out: leave `readout` out, and "
            f"give as `direction` one of {list(parts)}."
        )
    options = {name: getattr(module, name) for name in _unseen(kind)}
    return _read(path, "", parts[direction], options, NO_WORDS)


def as_float32(reading: Reading) -> Params:
    """The params in float32, the dtype of zoos; ValueError where one is not finite there."""
    params = {name: tensor.to(torch.float32) for name, tensor in reading.params.items()}
    for name, tensor in params.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"'{name}' of the model '{reading.name}' is not finite in float32; leave the file out.")
    return params
