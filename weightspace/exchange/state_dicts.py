"""State dicts of torch.nn's recurrent layers: safetensors files, each with a JSON beside it that describes it.

NAME.json beside NAME.safetensors gives the `class` in torch.nn (RNN, GRU, LSTM, or the cell of one), `input_size` and
`hidden_size`; where they differ from the defaults `num_layers` (1), the `nonlinearity` of an RNN ("tanh") and the
fields of `Layout`; and for a read-out its `output_size`. Tensors of other modules are ignored, and prefixes that
wrappers add to names (`module.`, `_orig_mod.`, `model.` ...) are found without being given.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from weightspace.exchange.sidecar import Layout, Sidecar, convertible, kind_of, read_sidecar
from weightspace.families.computed import plain, refuse_computed
from weightspace.families.layered import Layered
from weightspace.spec import Params
from weightspace.store import pretty, write_durably

__all__ = ["Layout", "convertible", "listed", "read", "write"]

TENSORS, SIDECAR = ".safetensors", ".json"

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Parts of tensor names -> the option of torch.nn that they come from, which no family can represent.
MARKS = {"_reverse": "bidirectional", "weight_hr_": "proj_size"}
# Modules that torch wraps around any other, wherever it is in a model.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def write(path: str | Path, module: nn.RNNBase | nn.RNNCellBase, readout: nn.Linear | None = None) -> Path:
    """Write a torch.nn layer or cell, and the nn.Linear that reads its last layer, as `path` and its sidecar.

    Weight normalisation and pruning are written as the weights that they compute, a cell as a layer. Options that no
    family represents, and tensors that `read` would refuse, are refused by name.
    """
    path = _checked(Path(path))
    kind = kind_of(nn.utils.parametrize.type_before_parametrizations(module).__name__, "The module")
    family, params = kind.from_torch(module, readout)
    _check_dtypes("The module and its read-out", params)
    # Only the sum of both biases of torch.nn matters, and that is the bias of the family.
    layer, reading = family.to_torch(params)
    fields = {key: value for key, value in family.config.items() if key != "has_readout"}
    layout = Layout(recurrent="recurrent", readout=None if reading is None else "readout")
    sidecar = {"class": kind.torch_class.__name__, **fields, **dataclasses.asdict(layout)}
    tensors = {f"recurrent.{name}": tensor for name, tensor in layer.state_dict().items()}
    tensors |= {} if reading is None else {f"readout.{name}": tensor for name, tensor in reading.state_dict().items()}
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    # The sidecar is written first: readers look for the tensors.
    write_durably(path.with_suffix(SIDECAR), pretty(sidecar))
    write_durably(path, data)
    return path


def read(path: str | Path) -> tuple[Layered, Params]:
    """The family and params of a state dict, in its dtype; ValueError names what differs and what was expected."""
    path = _checked(Path(path))
    sidecar = read_sidecar(path.with_suffix(SIDECAR), path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return _read(path, sidecar, file)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}.") from None


def listed(folder: str | Path) -> list[Path]:
    """The state dicts of a folder, sorted by name; ValueError if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; give a folder of state dicts, NAME{TENSORS} and NAME{SIDECAR} each."
        )
    paths = sorted((path for path in folder.iterdir() if path.suffix == TENSORS), key=lambda path: path.stem)
    if not paths:
        raise ValueError(f"{folder} holds no state dicts; each is a NAME{TENSORS} with a NAME{SIDECAR} beside it.")
    return paths


def _checked(path: Path) -> Path:
    if path.suffix != TENSORS:
        raise ValueError(f"{path} must end in {TENSORS}, as files of state dicts do.")
    return path


def of_tensors(path: Path, sidecar: Sidecar, tensors: Mapping[str, Tensor]) -> tuple[Layered, Params]:
    """The family and params of tensors in memory, which are those of `path`, as `read` gives those of a file."""
    return _read(path, sidecar, _InMemory(tensors))


class _InMemory(dict[str, Tensor]):
    """Tensors with the methods of a safetensors file."""

    def get_tensor(self, name: str) -> Tensor:
        return self[name]

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self[name])


class _Slice(NamedTuple):
    tensor: Tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)


def _read(path: Path, sidecar: Sidecar, file: Any) -> tuple[Layered, Params]:
    keys = _names_without_wrappers(path, file.keys())
    family = _family(path, sidecar, [file.get_slice(key).get_shape() for key in keys.values()])
    layout = sidecar.layout
    with torch.device("meta"):
        module, reading = family.torch_modules(bias=layout.bias, readout_bias=layout.readout_bias)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    names = family.torch_names(bias=layout.bias, is_cell=sidecar.is_cell)
    front = _front(path, sidecar, keys, min(name for name in names if name.startswith("weight_hh")))
    expected = {name: shapes[layer] for name, layer in names.items()}
    weights = _part(path, keys, front + layout.recurrent, expected, file)
    head: dict[str, Tensor] | None = None
    if reading is not None:
        expected = {name: tuple(tensor.shape) for name, tensor in reading.state_dict().items()}
        head = _part(path, keys, front + str(layout.readout), expected, file)
    _check_dtypes(str(path), {**weights, **(head or {})})
    return family, family.params_of({layer: weights[name] for name, layer in names.items()}, head)


def without_wrappers(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `path` by names without the modules that torch wraps around others."""
    return {bare: tensors[name] for bare, name in _names_without_wrappers(path, tensors).items()}


def _names_without_wrappers(path: Path, names: Collection[str]) -> dict[str, str]:
    """Names without wrappers -> names in a state dict."""
    names_of: dict[str, str] = {}
    for name in names:
        bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if bare in names_of:
            raise ValueError(f"{path} holds '{names_of[bare]}' and '{name}', which are one tensor; take one out.")
        names_of[bare] = name
    return names_of


def _family(path: Path, sidecar: Sidecar, shapes: Collection[list[int]]) -> Layered:
    largest = max((size for shape in shapes for size in shape), default=0)
    for key in ("input_size", "hidden_size", "output_size"):
        size = sidecar.fields[key]
        # Checked before modules of that size are made.
        if size > largest:
            raise ValueError(f"{path} says `{key}` {size}, but the largest axis of its tensors is {largest}.")
    if sidecar.fields["num_layers"] > len(shapes):
        raise ValueError(f"{path} says `num_layers` {sidecar.fields['num_layers']}, but has {len(shapes)} tensors.")
    try:
        return sidecar.kind(**sidecar.fields)
    except ValueError as error:
        raise ValueError(f"{path.with_suffix(SIDECAR)}: {error}") from None


def _front(path: Path, sidecar: Sidecar, keys: Collection[str], weight: str) -> str:
    """The common prefix of both modules' names, such as `model.`; ValueError if several would fit."""
    layout = sidecar.layout
    dotted = f"{layout.recurrent}." if layout.recurrent else ""
    # A computed weight is recognised by the names of the tensors that it is computed from.
    pattern = re.compile(rf"((?:.+?\.)??){re.escape(dotted)}(?:parametrizations\.)?{weight}(?!_l\d)(?:[._].*)?")
    fronts = {match[1] for match in map(pattern.fullmatch, keys) if match}
    if "" in fronts:
        return ""
    if layout.readout is not None:
        fronts = {front for front in fronts if any(key.startswith(f"{front}{layout.readout}.") for key in keys)}
    if len(fronts) > 1:
        choices = [(front + layout.recurrent).rstrip(".") for front in sorted(fronts)]
        raise ValueError(
            f"{path} holds several modules that `recurrent` may mean: {choices[:5]}; say which in "
            f"{path.with_suffix(SIDECAR).name}."
        )
    return fronts.pop() if fronts else ""


def _part(
    path: Path, keys: Mapping[str, str], module: str, expected: Mapping[str, tuple[int, ...]], file: Any
) -> dict[str, Tensor]:
    """The weights of the module of this name, checked for these shapes; computed weights are made plain."""
    dotted = f"{module.rstrip('.')}." if module else ""
    inside = {key.removeprefix(dotted): name for key, name in keys.items() if key.startswith(dotted)}
    if not module:
        # Names with a dot are those of other modules.
        inside = {key: name for key, name in inside.items() if "." not in key or key.startswith("parametrizations.")}
    tensors = plain({key: file.get_tensor(name) for key, name in inside.items()})
    refuse_computed(f"'{module}' of {path}" if module else str(path), expected, tensors)
    missing = sorted(dotted + key for key in set(expected) - set(tensors))
    unexpected = sorted(dotted + key for key in set(tensors) - set(expected))
    if len(missing) == len(expected):
        # No tensor of the module was found: its name is wrong, so the message lists the names in the file.
        unexpected = unexpected or sorted(keys)
    for mark, option in MARKS.items():
        if any(mark in name for name in unexpected):
            raise ValueError(
                f"{path} holds {unexpected[:5]}, which only a layer with `{option}` has; it has no place in a family."
            )
    if missing or unexpected:
        raise ValueError(
            f"{path} is not what its {SIDECAR[1:]} says: missing {missing[:5]}, unexpected {unexpected[:5]}. There "
            "`recurrent` and `readout` are the names of the two modules."
        )
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"'{dotted}{key}' of {path} has shape {tuple(tensors[key].shape)}, expected {shape}.")
    return tensors


def _check_dtypes(owner: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the tensors have values, in one floating dtype."""
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ValueError(f"{owner} is on the device meta, where tensors have no values; load it on cpu first.")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(f"{owner} holds tensors of {sorted(map(str, dtypes))}; expected one of {DTYPES} for all.")
