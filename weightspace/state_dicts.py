"""State dicts of torch.nn's recurrent layers: safetensors files, each with a JSON beside it that says what it holds.

NAME.json beside NAME.safetensors gives the `class` in torch.nn (RNN, GRU or LSTM), `input_size` and `hidden_size`;
where they differ from the defaults `num_layers` (1), the `nonlinearity` of an RNN ("tanh") and the fields of `Layout`;
and for a read-out its `output_size`.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from weightspace import families
from weightspace.discovery import near_match
from weightspace.families.layered import UNREPRESENTED, Layered, refuse_unrepresented
from weightspace.spec import Params
from weightspace.store import pretty, write_durably

TENSORS, SIDECAR = ".safetensors", ".json"

EXAMPLE = json.dumps({"class": "LSTM", "input_size": 3, "hidden_size": 8, "readout": "head", "output_size": 1})
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Names that only a layer with an option has that cannot be represented.
MARKS = {"_reverse": "bidirectional", "weight_hr_": "proj_size"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tensors of a model are in its state dict."""

    recurrent: str = ""
    """Name of the recurrent layer, in front of the names of its tensors; empty where they have nothing in front."""
    readout: str | None = None
    """Name of the nn.Linear that reads the last layer, None where there is none."""
    bias: bool = True
    readout_bias: bool = True

    def names(self, module: nn.RNNBase, readout: nn.Linear | None) -> dict[str, tuple[nn.Module, str]]:
        """For each name in the state dict the module it belongs to, and its name there."""
        parts = [(self.recurrent, module)] + ([(str(self.readout), readout)] if readout is not None else [])
        return {f"{own}.{name}" if own else name: (part, name) for own, part in parts for name in part.state_dict()}


def convertible() -> dict[str, type[Layered]]:
    """The families that come from and go to torch.nn, by the name of the class there."""
    found: dict[str, type[Layered]] = {}
    for kind in families.available().values():
        if issubclass(kind, Layered):
            # The families of this package come first, and no other takes their place.
            found.setdefault(kind.torch_class.__name__, kind)
    return found


def write(path: str | Path, module: nn.RNNBase, readout: nn.Linear | None = None) -> Path:
    """Write a torch.nn layer, and the nn.Linear that reads its last layer, as `path` (.safetensors) and its sidecar.

    What has no place in a family is refused by name.
    """
    path = _checked(Path(path))
    family, _ = _kind(type(module).__name__, "The module").from_torch(module, readout)
    layout = Layout(
        recurrent="recurrent",
        readout=None if readout is None else "readout",
        bias=module.bias,
        readout_bias=readout is None or readout.bias is not None,
    )
    own = {key: value for key, value in family.config.items() if key != "has_readout"}
    sidecar = {"class": type(module).__name__, **own, **dataclasses.asdict(layout)}
    tensors = {
        name: part.state_dict()[own].detach().cpu().contiguous()
        for name, (part, own) in layout.names(module, readout).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Files are found by their tensors, so what explains them is there first.
    write_durably(path.with_suffix(SIDECAR), pretty(sidecar))
    write_durably(path, safetensors.torch.save(tensors))
    return path


def read(path: str | Path) -> tuple[Layered, Params]:
    """The family and params of a state dict, in its dtype; ValueError says what does not fit, and what would."""
    path = _checked(Path(path))
    kind, fields, layout = _read_sidecar(path)
    tensors = _read_tensors(path)
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for key in ("input_size", "hidden_size", "output_size"):
        # Before modules of that size are made.
        if fields[key] > largest:
            raise ValueError(f"{path} says `{key}` {fields[key]}, but the largest axis of its tensors is {largest}.")
    if fields["num_layers"] > len(tensors):
        raise ValueError(f"{path} says `num_layers` {fields['num_layers']}, but has {len(tensors)} tensors.")
    try:
        family = kind(**fields)
    except ValueError as error:
        raise ValueError(f"{path.with_suffix(SIDECAR)}: {error}") from None
    with torch.device("meta"):
        module, readout = family.torch_modules(bias=layout.bias, readout_bias=layout.readout_bias)
    names = layout.names(module, readout)
    _check(path, {name: tuple(part.state_dict()[own].shape) for name, (part, own) in names.items()}, tensors)
    for part in {part: None for part, _ in names.values()}:
        own_names = {own: tensors[name] for name, (holder, own) in names.items() if holder is part}
        part.load_state_dict(own_names, assign=True)
    return kind.from_torch(module, readout)


def listed(folder: str | Path) -> list[Path]:
    """The state dicts of a folder, sorted by name; ValueError if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; give a folder of state dicts, NAME{TENSORS} and NAME{SIDECAR} each."
        )
    found = sorted((path for path in folder.iterdir() if path.suffix == TENSORS), key=lambda path: path.stem)
    if not found:
        raise ValueError(f"{folder} holds no state dicts; each is a NAME{TENSORS} with a NAME{SIDECAR} beside it.")
    return found


def _checked(path: Path) -> Path:
    if path.suffix != TENSORS:
        raise ValueError(f"{path} must end in {TENSORS}, as files of state dicts do.")
    return path


def _kind(name: Any, what: str) -> type[Layered]:
    known = sorted(convertible())
    if name not in known:
        raise ValueError(f"{what} is a {name!r}; only torch.nn's {known} have a family.{near_match(str(name), known)}")
    return convertible()[name]


def _read_sidecar(path: Path) -> tuple[type[Layered], dict[str, Any], Layout]:
    """The family class of a state dict, the family's fields, and the layout, each option known and of its type."""
    file = path.with_suffix(SIDECAR)
    if not file.is_file():
        raise ValueError(f"{path} lacks {file.name}, which says what it holds, such as {EXAMPLE}.")
    try:
        said = json.loads(file.read_bytes())
    except ValueError:
        raise ValueError(f"{file} is not JSON; it says what {path.name} holds, such as {EXAMPLE}.") from None
    if not isinstance(said, dict) or "class" not in said:
        raise ValueError(f"{file} does not say the `class` of {path.name}; expected something such as {EXAMPLE}.")
    kind = _kind(said.pop("class"), f"{path}")
    hints = {**typing.get_type_hints(Layout), **_types(kind)}
    for key in said:
        if key not in hints and key not in UNREPRESENTED:
            raise ValueError(f"{file} has no option '{key}'; it has {sorted(hints)}.{near_match(key, hints)}")
    refuse_unrepresented(kind, said)
    for key, hint in hints.items():
        # Choices are for the family to check.
        allowed = (hint,) if isinstance(hint, type) else typing.get_args(hint) if isinstance(hint, UnionType) else None
        if key in said and allowed is not None and type(said[key]) not in allowed:
            raise ValueError(f"`{key}` (={said[key]!r}) of {file} must be of type {getattr(hint, '__name__', hint)}.")
    layout = Layout(**{key: said[key] for key in typing.get_type_hints(Layout) if key in said})
    fields = {"num_layers": 1, **{key: said[key] for key in _types(kind) if key in said}}
    fields["has_readout"] = layout.readout is not None
    if layout.readout is None:
        fields.setdefault("output_size", said.get("hidden_size"))
    for key in ("input_size", "hidden_size", "output_size"):
        if fields.get(key) is None:
            raise ValueError(f"{file} does not say the `{key}` of {path.name}.")
    return kind, fields, layout


def _types(kind: type[Layered]) -> dict[str, Any]:
    """The types of the options a sidecar may give of a family."""
    own = {field.name for field in dataclasses.fields(kind)} - {"has_readout"}
    return {key: hint for key, hint in typing.get_type_hints(kind).items() if key in own}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}.") from None


def _check(path: Path, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the tensors are those expected, in one floating dtype."""
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    for mark, option in MARKS.items():
        if any(mark in name for name in extra):
            raise ValueError(
                f"{path} holds {extra[:5]}, which only a layer with `{option}` has; it has no place in a family."
            )
    if missing or extra:
        raise ValueError(
            f"{path} is not what its {SIDECAR[1:]} says: missing {missing[:5]}, unexpected {extra[:5]}. There "
            "`recurrent` and `readout` are the names of the two modules."
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"'{name}' of {path} has shape {tuple(tensors[name].shape)}, expected {shape}.")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(f"{path} holds tensors of {sorted(map(str, dtypes))}; expected one of {DTYPES} for all.")
