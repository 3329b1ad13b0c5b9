"""Sidecars: the JSON beside a state dict that describes it, each option checked for name and type."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from weightspace import families
from weightspace.components.discovery import near_match, refuse_unknown_options
from weightspace.families.layered import UNREPRESENTED, Layered, refuse_unrepresented

EXAMPLE = json.dumps({"class": "LSTM", "input_size": 3, "hidden_size": 8, "readout": "head", "output_size": 1})
MAX_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names under which a state dict has the tensors of a model."""

    recurrent: str = ""
    """Name of the recurrent layer, which is the prefix of its tensors' names; empty where they have none."""
    readout: str | None = None
    """Name of the nn.Linear that reads the last layer, None where there is none."""
    bias: bool = True
    readout_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """Options of torch.nn that change neither the weights nor what a model computes in evaluation mode."""

    batch_first: bool = False
    dropout: int | float = 0.0


@dataclass(frozen=True)
class Sidecar:
    """Content of a sidecar: the family, whether its weights are named as in a cell of torch.nn, and the layout."""

    kind: type[Layered]
    fields: dict[str, Any]
    is_cell: bool
    layout: Layout


def convertible() -> dict[str, type[Layered]]:
    """The families that convert from and to torch.nn, by the names of its layers and cells."""
    kinds: dict[str, type[Layered]] = {}
    for kind in families.available().values():
        if issubclass(kind, Layered):
            for torch_class in (kind.torch_class, kind.torch_cell):
                # Families of this package come first: a user package cannot replace them.
                if torch_class is not None:
                    kinds.setdefault(torch_class.__name__, kind)
    return kinds


def kind_of(name: Any, owner: str) -> type[Layered]:
    """The family of a class of torch.nn; ValueError where there is none."""
    kinds = convertible()
    if not isinstance(name, str) or name not in kinds:
        hint = near_match(name, kinds) if isinstance(name, str) else ""
        raise ValueError(f"{owner} is a {_short(name)}; only torch.nn's {sorted(kinds)} have a family.{hint}")
    return kinds[name]


def read_sidecar(file: Path, path: Path) -> Sidecar:
    """Read the sidecar `file` of the state dict `path`; ValueError names the option that is wrong, and the choices."""
    return sidecar_of(read_options(file, path), file, path)


def sidecar_of(options: Mapping[str, Any], file: Path, path: Path) -> Sidecar:
    """The sidecar with these options; ValueError, naming `file`, for one that is wrong."""
    options = dict(options)
    if "class" not in options:
        raise ValueError(f"{file} does not say the `class` of {path.name}; expected something such as {EXAMPLE}.")
    name = options.pop("class")
    kind = kind_of(name, str(path))
    hints = {**_types(Layout), **_types(Ignored), **_types(kind)}
    hints.pop("has_readout")
    refuse_unknown_options(str(file), [key for key in options if key not in UNREPRESENTED], sorted(hints))
    for key, value in options.items():
        _refuse_type(file, key, value, hints.get(key))
    try:
        refuse_unrepresented(kind, options)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    layout = Layout(**{key: options[key] for key in _types(Layout) if key in options})
    # A missing `bias` is one of zeros: the family has it, the file does not.
    of_family = _types(kind).keys() - _types(Layout).keys()
    fields = {"num_layers": 1, **{key: value for key, value in options.items() if key in of_family}}
    fields["has_readout"] = layout.readout is not None
    if layout.readout is None:
        fields.setdefault("output_size", options.get("hidden_size"))
    for key in ("input_size", "hidden_size", "output_size"):
        if fields.get(key) is None:
            raise ValueError(f"{file} does not say the `{key}` of {path.name}.")
    is_cell = kind.torch_cell is not None and name == kind.torch_cell.__name__
    if is_cell and fields["num_layers"] != 1:
        raise ValueError(f"`num_layers` (={fields['num_layers']}) of {file} must be 1, as a {name} is one layer.")
    return Sidecar(kind, fields, is_cell, layout)


def read_options(file: Path, path: Path) -> dict[str, Any]:
    """The options of the sidecar `file` as they stand there; ValueError unless they are JSON of a mapping."""
    if not file.is_file():
        raise ValueError(f"{path} lacks {file.name}, which says what it holds, such as {EXAMPLE}.")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} has more than {MAX_BYTES:,} bytes; expected something such as {EXAMPLE}.")
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_without_repeats)
    except _RepeatedError as error:
        raise ValueError(f"{file} gives {_short(str(error))} more than once; give it once.") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{file} is not JSON; it says what {path.name} holds, such as {EXAMPLE}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} does not say the `class` of {path.name}; expected something such as {EXAMPLE}.")
    return content


class _RepeatedError(ValueError):
    pass


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated keys, of which Python would silently keep the last."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise _RepeatedError(key)
        content[key] = value
    return content


def _types(kind: Any) -> Mapping[str, Any]:
    """The types of the fields of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _refuse_type(file: Path, key: str, value: Any, hint: Any) -> None:
    # Literal types are checked by the family.
    allowed = (hint,) if isinstance(hint, type) else typing.get_args(hint) if isinstance(hint, UnionType) else None
    if allowed is not None and type(value) not in allowed:
        name = getattr(hint, "__name__", hint)
        raise ValueError(f"`{key}` (={_short(value)}) of {file} must be of type {name}.")


def _short(value: Any) -> str:
    """The beginning of a value's repr, for error messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
